"""A real sshd on the loopback address, code to send to it."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from llamax.launch import code
from tests.launch.processes import ROOT

SSHD = shutil.which('sshd') or '/usr/sbin/sshd'
SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv WHO
"""
# Several names of one machine, which can tell by which it was reached.
CLIENT = """
Host {name}
  HostName 127.0.0.1
  Port {port}
  User {user}
  SetEnv WHO={name}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@pytest.fixture(scope='session')
def sshd(tmp_path_factory):
  """Path of an ssh_config: hosts a, b are this machine, as `stranger` with another key; none is `gone`."""
  if not os.access(SSHD, os.X_OK):
    pytest.skip('no sshd here (Debian: apt-get install openssh-server)')
  folder = tmp_path_factory.mktemp('sshd')
  for key in ('host_key', 'user_key', 'other_key'):
    subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', folder / key], check=True)
  if os.geteuid() == 0:
    os.makedirs('/run/sshd', mode=0o755, exist_ok=True)  # It wants that to be there, as root.
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  (folder / 'server').write_text(SERVER.format(port=port, folder=folder))
  names, user = ('a', 'b', 'stranger'), getpass.getuser()
  hosts = {name: CLIENT.format(name=name, port=port, user=user, folder=folder) for name in names}
  hosts['stranger'] = hosts['stranger'].replace('known_hosts', 'other_hosts')
  (folder / 'client').write_text(''.join(hosts.values()) + 'Host gone\n  HostName 127.0.0.1\n  Port 1\n')
  for name in ('known_hosts', 'other_hosts'):
    key = (folder / ('host_key.pub' if name == 'known_hosts' else 'other_key.pub')).read_text().split()
    (folder / name).write_text(f'[127.0.0.1]:{port} {key[0]} {key[1]}\n')
  with open(folder / 'log', 'w') as log:
    server = subprocess.Popen([SSHD, '-D', '-e', '-f', folder / 'server'], stderr=log)
  try:
    _wait_for_port(server, port, folder / 'log')
    yield folder / 'client'
  finally:
    server.terminate()
    server.wait()


def _wait_for_port(server, port, log):
  end = time.monotonic() + 10
  while True:
    with socket.socket() as probe:
      if probe.connect_ex(('127.0.0.1', port)) == 0:
        return
    assert server.poll() is None and time.monotonic() < end, log.read_text()
    time.sleep(0.05)


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
  """Path of the launcher's cache, which holds the code of this checkout as it is, made once."""
  if not (ROOT / '.git').exists() or shutil.which('git') is None:
    pytest.skip('this is no checkout')
  folder = tmp_path_factory.mktemp('launcher_cache')
  before = os.environ.get('LLAMAX_CACHE')
  os.environ['LLAMAX_CACHE'] = str(folder)
  try:
    code.make(code.find(None, True, ROOT))
  finally:
    os.environ['LLAMAX_CACHE'] = before or ''
  return folder


@pytest.fixture(scope='session')
def wheel(cache):
  """Path of the wheel in that code, with a name that --wheel takes."""
  (bundle,) = cache.glob('code/*/bundle.tar')
  folder = cache / 'wheel'
  shutil.unpack_archive(bundle, folder)
  return next(folder.glob('*.whl'))


@pytest.fixture
def llamax():
  """(*words, **environment) -> the process of `llamax words`, killed afterwards."""
  started = []

  def start(*words, cwd=None, **env):
    process = subprocess.Popen(
      [sys.executable, '-m', 'llamax.cli.main', *map(str, words)],
      env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
      cwd=cwd,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
