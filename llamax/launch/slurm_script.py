"""The script that sbatch gets: what SLURM is asked for, one task a node, what follows its end."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.launch.job import Job
from llamax.train.supervise import FINAL

FOLDER = 'launch'  # in the workdir; in that a folder for each job's name
ENDS, BATCH_LOG, SCRIPT, STOP = 'ends.jsonl', 'batch.log', 'job.sbatch', 'stop'
_PLAIN = re.compile(r'[A-Za-z0-9_.,:/@=+%^-]+')
# sbatch reads these lines by rules of its own: what it would take for something else is refused.
_REFUSED = re.compile(r'["\'\\\x00-\x1f\x7f]')


@dataclass(frozen=True)
class Asked:
  """What SLURM is asked for. Each field is an option of sbatch; None: what the cluster says.

  cpus_per_task: None: whole nodes. warning: seconds before the time limit at which train is told to save.
  more: further options as sbatch has them, '--gres=gpu:8'.
  """

  nodes: int
  gpus_per_node: int | None = None
  cpus_per_task: int | None = None
  mem: str | None = None
  partition: str | None = None
  account: str | None = None
  qos: str | None = None
  constraint: str | None = None
  time: str | None = None
  warning: int = 120
  more: tuple[str, ...] = ()

  def options(self) -> list[str]:
    """For sbatch as for srun. Raises UserError for a value that could be taken for more than a value."""
    found = [f'--nodes={self.nodes}', '--ntasks-per-node=1']
    found += [f'--gpus-per-node={self.gpus_per_node}'] * (self.gpus_per_node is not None)
    found += ['--exclusive'] if self.cpus_per_task is None else [f'--cpus-per-task={self.cpus_per_task}']
    for name in ('mem', 'partition', 'account', 'qos', 'constraint', 'time'):
      text = getattr(self, name)
      if text is not None:
        check(f'--{name}', text)
        found.append(f'--{name}={text}')
    for word in self.more:
      check('--sbatch', word)
      if not re.match(r'--[a-z]', word):
        raise UserError(f'--sbatch={word!r}: want a long option of sbatch, as in --sbatch=--gres=gpu:8')
    return [*found, *self.more]


def check(where: str, text: str) -> None:
  """UserError for what no line of sbatch's could carry."""
  if not text or _REFUSED.search(text):
    raise UserError(
      f'{where}={text!r}: want some text without quotes, backslashes, line ends: sbatch takes them for its own'
    )


def directive(option: str) -> str:
  """'--constraint=a&b' -> '#SBATCH --constraint="a&b"'."""
  name, equals, text = option.partition('=')
  return f'#SBATCH {option}' if not equals or _PLAIN.fullmatch(text) else f'#SBATCH {name}="{text}"'


def pattern(path: Path) -> str:
  """A path for --output, in which SLURM would take % for a field."""
  return str(path).replace('%', '%%')


def script(job: Job, asked: Asked, folder: Path, cwd: Path, setup: str, max_failures: int) -> str:
  """The whole script.

  Args:
    folder: of its logs, its record; on the disk that all nodes share.
    cwd: what paths in the command are relative to.
    setup: lines of a shell that make `llamax` a command: module load, source venv/bin/activate.
    max_failures: ends after so many starts in a row without a new checkpoint.
  """
  assert job.workdir is not None
  check('the workdir', str(folder))
  check('the folder', str(cwd))
  lines = [f'--job-name={job.name}', *asked.options(), '--requeue', '--open-mode=append', '--export=ALL']
  lines += [f'--signal=TERM@{asked.warning}', f'--output={pattern(folder / BATCH_LOG)}', f'--chdir={cwd}']
  values = {
    'DIRECTIVES': '\n'.join(directive(line) for line in lines),
    'FOLDER': shlex.quote(str(folder)),
    'WORKDIR': shlex.quote(str(cwd / job.workdir)),
    'TASK_LOG': shlex.quote(f'{pattern(folder)}/task-%t.log'),
    'COMMAND': '\n  '.join(shlex.quote(word) for word in job.command),
    'EXPORTS': ''.join(f'export {name}={shlex.quote(text)}\n' for name, text in job.env.items()),
    'SETUP': setup.rstrip('\n') + '\n' if setup.strip() else '',
    'CODE': _UNPACK.replace('@VERSION@', job.code.version) if job.code else '',
    'CPUS': f'--cpus-per-task={asked.cpus_per_task} ' if asked.cpus_per_task else '',
    'FINAL': ' '.join(str(code) for code in FINAL),
    'MAX_FAILURES': str(max_failures),
    'RESUME': str(exits.RESUME),
    'INTERRUPTED': str(exits.INTERRUPTED),
    'LOST': str(exits.LOST),
  }
  # One pass: what a value holds is never looked at again.
  return re.sub(r'@([A-Z_]+)@', lambda found: values[found[1]], _SCRIPT)


_UNPACK = """
# The code as it was when this was submitted, whatever has become of the checkout since.
code=$folder/code-@VERSION@
if [[ ! -d $code ]]; then
  if ! (cd -- "$folder" && sha256sum --check --quiet bundle.tar.sha256); then
    note '"event": "ended", "code": 2, "then": "bundle.tar has another digest than it was submitted with"'
    exit 2
  fi
  fresh=$(mktemp -d -- "$folder/.code-XXXXXX")
  tar -xf "$folder/bundle.tar" -C "$fresh"
  python3 -m zipfile -e "$fresh"/llamax-*.whl "$fresh/site"
  mv -T -- "$fresh/site" "$code" || [[ -d $code ]]
  rm -r -- "$fresh"
fi
export PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}"
"""

_SCRIPT = r"""#!/bin/bash
@DIRECTIVES@
# Made by llamax launch slurm. Can be edited, submitted by hand: sbatch job.sbatch
# shellcheck disable=SC2016,SC2059 # What is quoted is for another shell, a format is one on purpose.

folder=@FOLDER@
workdir=@WORKDIR@
command=(
  @COMMAND@
)
export PYTHONUNBUFFERED=1
@EXPORTS@@SETUP@
# One JSON object per start, end; all that `llamax launch slurm run` needs to know.
restart=${SLURM_RESTART_COUNT:-0}
note() {
  local form='{"time": "%(%Y-%m-%dT%H:%M:%S%z)T", "job": %d, "restart": %d, %s}\n'
  printf "$form" -1 "$SLURM_JOB_ID" "$restart" "$1" >>"$folder/ends.jsonl"
}
newest() {
  local step best=-1
  for step in "$workdir"/checkpoints/*/; do
    step=${step%/} step=${step##*/}
    [[ $step =~ ^[0-9]+$ ]] && ((step > best)) && best=$step
  done
  echo "$best"
}

if [[ -e $folder/stop ]]; then # SLURM itself has requeued it meanwhile.
  note '"event": "ended", "code": @RESUME@, "then": "stopped by llamax launch slurm stop"'
  exit @RESUME@
fi
@CODE@
# A signal to this shell (scancel, the end of its time) must not end it before the tasks have saved.
trap : TERM
note '"event": "started"'
echo "llamax: start $((restart + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"
before=$(newest)
rm -f -- "$folder"/code-of-*

# SLURM's signal reaches the tasks; each one's shell outlives it to write the exit code down, since srun tells
# one code of all. No binding: the one task of a node may use all of its cores.
srun --ntasks-per-node=1 @CPUS@--cpu-bind=none --wait=300 --open-mode=append --output=@TASK_LOG@ \
  bash -c 'trap : TERM; "$@"; code=$?; echo "$code" >"$0/code-of-$SLURM_PROCID"; exit "$code"' \
  "$folder" "${command[@]}"
code=$?

# Of several codes the one that says most: a mistake or an error, a lost process, a signal, a stop asked for.
weight() {
  case $1 in
    0) echo 0 ;;
    @RESUME@ | @INTERRUPTED@) echo 1 ;;
    @LOST@) echo 3 ;;
    *) if (($1 > 128)); then echo 2; else echo 4; fi ;;
  esac
}
codes=("$folder"/code-of-*)
if [[ -e ${codes[0]} ]]; then
  ((${#codes[@]} == SLURM_NTASKS)) && code=0 # Else a task was killed with its shell: that is srun's code.
  for file in "${codes[@]}"; do
    one=$(<"$file")
    (($(weight "$one") > $(weight "$code"))) && code=$one
  done
fi

after=$(newest)
failures=0
if ((after <= before)); then
  ((restart > 0)) && failures=$(cat "$folder/failures" 2>/dev/null || echo 0)
  failures=$((failures + 1))
fi
echo "$failures" >"$folder/failures"

again=yes why='requeued'
((failures >= @MAX_FAILURES@)) && again=no why="given up: $failures starts in a row without a new checkpoint"
for final in @FINAL@; do
  ((code == final)) && again=no why='final: the same command would end the same way'
done
((code == 0)) && why='done'
# While it is being cancelled it has another state, and would come back.
state=''
for _ in 1 2 3 4 5; do
  state=$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T) && break
  sleep 5
done
if [[ $again == yes && $state != RUNNING ]]; then
  again=no why="left to SLURM: the job is ${state:-unknown} (cancelled, or a node failed: then it comes back)"
fi
[[ $again == yes && -e $folder/stop ]] && again=no why='stopped by llamax launch slurm stop'
echo "llamax: exit code $code, newest checkpoint $after, before $before: $why"
note "\"event\": \"ended\", \"code\": $code, \"then\": \"$why\""
if [[ $again == yes ]]; then
  trap 'exit "$code"' TERM # By which SLURM ends this script, its sleep perhaps a moment earlier.
  SECONDS=0
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 &
  wait "$!"
  ((SECONDS < 60)) && exit "$code"
  note "\"event\": \"ended\", \"code\": $code, \"then\": \"could not be requeued\""
fi
exit "$code"
"""
