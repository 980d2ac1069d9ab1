"""A gcloud whose cloud is a folder: queued resources that are given, taken away; workers that are folders.

Commands for workers run for real, under a home folder of their own. FAKE_CLOUD is the folder:

  plan.json   what to do: {waits: looks until given, preempt_at: [step, ...] of the job, kill: bool}
  cloud.json  what there is
  calls.jsonl every call with the state that it met

With `kill` the caller is killed (SIGKILL) once before, once after each kind of call in each state of the cloud.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

CLOUD = Path(os.environ['FAKE_CLOUD'])
NOW = '2026-11-22T12:00:00.123456789Z'


def main(argv: list[str]) -> int:
  sys.path.insert(0, str(Path(__file__).parent))
  from recorded.check import check

  check(['gcloud', *argv])
  noun, verb = argv[2:4]
  flags = dict(word.partition('=')[::2] for word in argv if word.startswith('--'))
  names = [word for word in argv[4:] if not word.startswith('--')]
  with locked():
    cloud = read()
    state = cloud['request']['state'] if cloud['request'] else 'none'
    note({'verb': f'{noun} {verb}', 'state': state})
    if verb in ('describe', 'list'):
      advance(cloud)
  kind = f'{noun} {verb} in {state} {zlib.crc32(flags.get("--command", "").encode()):08x}'
  killing('before', kind)
  code = VERBS[f'{noun} {verb}'](names, flags)
  killing('after', kind)
  return code


def advance(cloud: dict) -> None:
  """Time passes with each look."""
  plan, request = json.loads((CLOUD / 'plan.json').read_text()), cloud['request']
  if request is None:
    return
  request['looks'] += 1
  if request['state'] == 'WAITING_FOR_RESOURCES' and request['looks'] > plan['waits']:
    request['state'] = 'PROVISIONING'
  elif request['state'] == 'PROVISIONING':
    request['state'] = 'ACTIVE'
    for node in request['nodes']:
      for worker in range(request['workers']):
        (CLOUD / 'homes' / node / str(worker)).mkdir(parents=True)
  elif request['state'] == 'ACTIVE' and cloud['preempted'] < len(plan['preempt_at']):
    steps = [int(file.read_text() or 0) for file in (CLOUD / 'steps').glob('*')]
    if steps and max(steps) >= plan['preempt_at'][cloud['preempted']]:
      cloud['preempted'] += 1
      request['state'] = 'SUSPENDING'
      end_machines()
  elif request['state'] == 'SUSPENDING':
    request['state'] = 'SUSPENDED'
  write(cloud)


def create(names: list[str], flags: dict) -> int:
  with locked():
    cloud = read()
    if cloud['request'] is not None:
      return fail(f'ALREADY_EXISTS: Resource {names[0]} already exists')
    count = int(flags.get('--node-count', 1))
    several = [f'{flags.get("--node-prefix")}-{index}' for index in range(count)]
    nodes = [flags['--node-id']] if count == 1 else several
    cloud['request'] = {
      'name': names[0], 'state': 'WAITING_FOR_RESOURCES', 'looks': 0, 'nodes': nodes,
      'type': flags['--accelerator-type'], 'workers': int(os.environ['FAKE_WORKERS']),
    }  # fmt: skip
    write(cloud)
  note({'granted': names[0]})
  return 0


def describe(names: list[str], flags: dict) -> int:
  request = read()['request']
  if request is None:
    return fail(
      f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{names[0]}' was not found. This command is "
      'authenticated as user@example.com which is the active account specified by the [core/account] property'
    )
  data = request['state'].lower().partition('_')[0] + 'Data'
  spec = {'parent': 'projects/p/locations/z', 'node': {'acceleratorType': request['type']}}
  print(
    json.dumps(
      {
        'createTime': NOW,
        'name': f'projects/p/locations/z/queuedResources/{request["name"]}',
        'spot': {},
        'state': {'state': request['state'], 'stateInitiator': 'SERVICE', data: {}},
        'tpu': {'nodeSpec': [spec]},
      }
    )
  )
  return 0


def listing(names: list[str], flags: dict) -> int:
  request = read()['request'] or {'state': '', 'nodes': [], 'workers': 0}
  state = {'ACTIVE': 'READY', 'SUSPENDING': 'PREEMPTED', 'PROVISIONING': 'CREATING'}.get(request['state'])
  nodes = [
    {
      'name': f'projects/p/locations/z/nodes/{node}',
      'state': state,
      'health': 'HEALTHY',
      'networkEndpoints': [{'ipAddress': f'10.0.0.{n}', 'port': 8470} for n in range(request['workers'])],
    }
    for node in request['nodes']
    if state
  ]
  print(json.dumps(nodes))
  return 0


def delete(names: list[str], flags: dict) -> int:
  assert '--force' in flags and '--quiet' in flags
  with locked():
    cloud = read()
    if cloud['request'] is None:
      return fail('NOT_FOUND: no such request')
    end_machines()
    cloud['request'] = None
    write(cloud)
  return 0


def ssh(names: list[str], flags: dict) -> int:
  homes = workers(names[0], flags['--worker'])
  runs = [
    subprocess.Popen(['bash', '-c', flags['--command']], env=environment(home), cwd=home, stdin=sys.stdin)
    for home in homes
  ]
  codes = [run.wait() for run in runs]
  return max(codes, default=1)


def scp(names: list[str], flags: dict) -> int:
  *files, target = names
  for home in workers(target.removesuffix(':'), flags['--worker']):
    for file in files:
      shutil.copy(file, home)
  return 0


def workers(node: str, which: str) -> list[Path]:
  homes = sorted((CLOUD / 'homes' / node).glob('*')) if (CLOUD / 'homes' / node).exists() else []
  if not homes:
    sys.exit(fail(f'NOT_FOUND: {node}'))
  return homes if which == 'all' else [homes[int(which)]]


def environment(home: Path) -> dict[str, str]:
  return {
    'HOME': str(home),
    'HOSTNAME': f't1v-n-0123abcd-w-{home.name}',
    'PATH': f'{CLOUD}/bin:/usr/bin:/bin',
    'FAKE_RANK': f'{home.parent.name}-{home.name}',
    'FAKE_CLOUD': str(CLOUD),
  }


def end_machines() -> None:
  """Kills all that runs under the homes, as a power cut does; the disks go with the machines."""
  mark = f'HOME={CLOUD}/homes/'.encode()
  for _ in range(50):
    found = False
    for folder in Path('/proc').glob('[0-9]*'):
      with contextlib.suppress(OSError):
        if int(folder.name) != os.getpid() and mark in (folder / 'environ').read_bytes():
          os.kill(int(folder.name), signal.SIGKILL)
          found = True
    if not found:
      break
    time.sleep(0.02)
  shutil.rmtree(CLOUD / 'homes', ignore_errors=True)


def killing(when: str, kind: str) -> None:
  if not json.loads((CLOUD / 'plan.json').read_text())['kill']:
    return
  with locked():
    file = CLOUD / 'killed.json'
    killed = json.loads(file.read_text()) if file.exists() else []
    # In `after` not in the call in whose `before` it was killed already.
    due = f'before {kind}' if when == 'before' else f'after {kind}'
    if due in killed or (when == 'after' and (CLOUD / f'killer-{os.getpid()}').exists()):
      return
    file.write_text(json.dumps([*killed, due]))
    (CLOUD / f'killer-{os.getpid()}').touch()
    note({'killed': due})
  os.kill(os.getppid(), signal.SIGKILL)
  time.sleep(0.05)


def read() -> dict:
  file = CLOUD / 'cloud.json'
  return json.loads(file.read_text()) if file.exists() else {'request': None, 'preempted': 0}


def write(cloud: dict) -> None:
  (CLOUD / 'cloud.json').write_text(json.dumps(cloud))


def note(facts: dict) -> None:
  with open(CLOUD / 'calls.jsonl', 'a') as file:
    file.write(json.dumps(facts) + '\n')


@contextlib.contextmanager
def locked():
  with open(CLOUD / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def fail(text: str) -> int:
  print(f'ERROR: (gcloud) {text}', file=sys.stderr)
  return 1


VERBS = {
  'queued-resources create': create,
  'queued-resources describe': describe,
  'queued-resources delete': delete,
  'tpu-vm list': listing,
  'tpu-vm ssh': ssh,
  'tpu-vm scp': scp,
}

if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
