"""A SLURM of two nodes on this machine, in a folder of its own, on the loopback address alone."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TOOLS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scancel', 'scontrol', 'setpriv')
NODES = ('127.0.0.1', '127.0.0.2')  # names that are addresses: whoever looks for the first node finds it

# What is left out is as Debian builds it. cred_expire: a job that is requeued waits that long.
_CONF = """
ClusterName=llamax
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmdTimeout=60
NodeName={nodes[0]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs={cpus} State=UNKNOWN
NodeName={nodes[1]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[3]} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def why_not() -> str | None:
  """Why no cluster can be started here; None: it can."""
  missing = [tool for tool in TOOLS if shutil.which(tool) is None]
  if missing:
    return f'no SLURM here ({", ".join(missing)}): apt-get install -y --no-install-recommends slurm-wlm munge'
  return None if os.getuid() == 0 else 'slurmd is to be started by root'


class Cluster:
  """Starts the daemons; `env` makes SLURM's commands speak to them."""

  def __init__(self):
    # Munge wants its socket where everybody may come; a socket's path is short.
    self.folder = Path(tempfile.mkdtemp(prefix='slurm-', dir='/tmp'))
    self.env = {**os.environ, 'SLURM_CONF': str(self.folder / 'slurm.conf')}
    self._daemons: list[subprocess.Popen] = []
    try:
      self._start()
    except BaseException:
      self.close()
      raise

  def _start(self) -> None:
    for path, mode in ((self.folder, 0o711), (self.folder / 'munge', 0o711), (self.folder / 'state', 0o700)):
      path.mkdir(exist_ok=True)
      path.chmod(mode)
    key = self.folder / 'munge/munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    text = _CONF.format(
      host=socket.gethostname(), folder=self.folder, ports=_free_ports(4), nodes=NODES, cpus=os.cpu_count()
    )
    (self.folder / 'slurm.conf').write_text(text)
    munge = [f'--{name}={self.folder}/munge/{file}' for name, file in (
      ('key-file', 'munge.key'), ('socket', 'munge.sock'), ('pid-file', 'munged.pid'),
      ('log-file', 'munged.log'), ('seed-file', 'seed'),
    )]  # fmt: skip
    self._daemon('munged', '--foreground', *munge)
    self._until(lambda: (self.folder / 'munge/munge.sock').exists(), 'munged has no socket')
    self._daemon('slurmctld', '-D', '-c', '-f', self.env['SLURM_CONF'])
    for node in NODES:
      self._daemon('slurmd', '-D', '-N', node, '-f', self.env['SLURM_CONF'])
    self._until(
      lambda: self.run('sinfo', '--noheader', '--format=%T %D').strip() == 'idle 2', 'nodes are not idle'
    )

  def _daemon(self, *words: str) -> None:
    log = open(self.folder / 'daemons.log', 'ab')  # noqa: SIM115 (the daemon's)
    # They die with whoever runs the tests, however that ends.
    command = ['setpriv', '--pdeathsig', 'TERM', *words]
    self._daemons.append(
      subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    )
    log.close()

  def _until(self, met, what: str) -> None:
    end = time.monotonic() + 60
    while not met():
      if time.monotonic() > end:
        logs = '\n'.join(path.read_text()[-2000:] for path in self.folder.glob('*.log'))
        raise AssertionError(f'{what}:\n{logs}')
      time.sleep(0.1)

  def run(self, *words: str) -> str:
    """Standard output of one of SLURM's commands, whatever its exit code."""
    return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60).stdout

  def clear(self) -> None:
    """Ends all jobs."""
    self.run('scancel', '--user=root')
    self._until(lambda: not self.run('squeue', '--noheader').strip(), 'jobs do not end')

  def close(self) -> None:
    if len(self._daemons) == 4:
      self.run('scancel', '--user=root')
      self.run('scontrol', 'shutdown')
    for daemon in reversed(self._daemons):
      daemon.send_signal(signal.SIGTERM)
      try:
        daemon.wait(10)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
  sockets = [socket.socket() for _ in range(count)]
  try:
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]
  finally:
    for one in sockets:
      one.close()
