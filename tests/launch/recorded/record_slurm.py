"""Records what SLURM's commands take: python tests/launch/recorded/record_slurm.py > .../slurm.json.

Facts alone: names of options, whether they take a value (no, may, must), from --help and the manual pages of
Debian's slurm-wlm. --help needs a SLURM_CONF that names a controller, which need not run.
"""

import gzip
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

TOOLS = ('sbatch', 'srun', 'scancel', 'squeue', 'sacct')
# Subcommands alone: scontrol has no options of its own that we use.
SCONTROL = ('show', 'requeue', 'update')
_HELP = re.compile(r'^ {2,6}(?:-\w, +|-\w  )?(--.*)')
_OPTION = re.compile(r'--([a-zA-Z][a-zA-Z0-9-]*)(\[?=)?')


def recorded(tool: str) -> dict[str, str]:
  """Option -> whether it takes a value."""
  # sacct has no --help without accounting.
  text = subprocess.run([tool, '--help'], capture_output=True, text=True).stdout
  heads = [match[1].split('  ')[0] for line in text.splitlines() if (match := _HELP.match(line))]
  with gzip.open(f'/usr/share/man/man1/{tool}.1.gz', 'rt') as file:
    manual = re.sub(r'\\f.', '', file.read()).replace('\\-', '-')
  lines = manual.splitlines()
  heads += [line for above, line in itertools.pairwise(lines) if above.startswith('.TP')]
  kinds = {'': 'no', '=': 'must', '[=': 'may'}
  options: dict[str, str] = {}
  for head in heads:
    if not re.match(r'(-\w, )?--', head):
      continue
    for name, equals in _OPTION.findall(head):
      kind = kinds[equals]
      if kind == 'no' and re.search(rf'--{name}=', manual):
        kind = 'may'  # Its examples have one.
      options[name] = kind if options.get(name, 'no') == 'no' else options[name]
  return dict(sorted(options.items()))


def main() -> None:
  version = subprocess.run(['sbatch', '--version'], capture_output=True, text=True, check=True).stdout.strip()
  text = subprocess.run(['scontrol', '--help'], capture_output=True, text=True, check=True).stdout
  scontrol = [word for word in SCONTROL if re.search(rf'^ +{word} ', text, re.MULTILINE)]
  facts = {'version': version, 'commands': {tool: recorded(tool) for tool in TOOLS}, 'scontrol': scontrol}
  json.dump(facts, sys.stdout, indent=1)
  print()


if __name__ == '__main__':
  assert Path(__file__).parent.name == 'recorded'
  main()
