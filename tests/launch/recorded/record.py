"""Records what command lines gcloud, kubectl take: python tests/launch/recorded/record.py [gcloud|kubectl].

Facts alone: names of flags, whether they take a value, which values, what excludes what. Offline.
With --parse it reads JSON lines [word, ...] from its input, tells how gcloud's own parser likes each of them.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
GCLOUD = [
  *(f'compute tpus queued-resources {verb}' for verb in ('create', 'describe', 'list', 'delete')),
  *(f'compute tpus tpu-vm {verb}' for verb in ('create', 'describe', 'list', 'delete', 'ssh', 'scp')),
  'container clusters get-credentials',
  'container node-pools create',
  'container node-pools delete',
  'compute resource-policies create workload-policy',
  'compute resource-policies delete',
]
KUBECTL = ['apply', 'get', 'logs', 'exec', 'delete', 'describe', 'wait', 'patch', 'create secret generic']


def gcloud_root() -> Path | None:
  found = shutil.which('gcloud')
  return Path(found).resolve().parent.parent if found else None


def gcloud_python(root: Path) -> str:
  bundled = root / 'platform/bundledpythonunix/bin/python3'
  return str(bundled) if bundled.exists() else sys.executable


def _gcloud_cli(root: str):
  sys.path[:0] = [f'{root}/lib', f'{root}/lib/third_party']
  from googlecloudsdk import gcloud_main

  return gcloud_main.CreateCLI([])


def _record_gcloud(root: str) -> None:
  """Inside gcloud's own Python."""
  cli, facts = _gcloud_cli(root), {}
  for name in GCLOUD:
    command = cli.top_element
    for word in name.split():
      command = command.LoadSubElement(word.replace('-', '_'))
    flags, positionals, rules = {}, [], []
    _walk(command.ai, flags, positionals, rules)
    facts[name] = {'flags': dict(sorted(flags.items())), 'positionals': positionals, 'rules': rules}
  version = Path(root, 'VERSION').read_text().strip()
  print(json.dumps({'version': f'Google Cloud SDK {version}', 'commands': facts}))


def _walk(group, flags, positionals, rules, top=True) -> list[str]:
  """The names in an argument group, all of them noted on the way."""
  names, members = [], []
  for argument in group.arguments:
    if hasattr(argument, 'arguments'):
      inner = _walk(argument, flags, positionals, rules, top=False)
      members.append(inner)
    elif argument.is_positional:
      optional = argument.nargs in ('?', '*', '...') or not argument.required
      many = argument.nargs in ('*', '+', '...')
      positionals.append({'name': argument.dest, 'required': not optional, 'many': many})
      continue
    else:
      inner = _flag(argument, flags, top)
      members.append(inner)
    names += inner
  members = [member for member in members if member]
  if group.is_mutex and members:
    rules.append({'one_of': members, 'required': bool(group.is_required)})
  elif group.is_required and not positionals and members:
    rules.append({'any_of': members})
  return names


def _flag(argument, flags, top) -> list[str]:
  """Notes a flag; one that is required inside a group is required together with the others of it alone."""
  fact = {'value': argument.nargs != 0}
  if argument.choices:
    fact['choices'] = sorted(map(str, argument.choices))
  if top and argument.required:
    fact['required'] = True
  for name in argument.option_strings:
    if fact['value'] or name not in flags:  # A command's own --version comes before that of all.
      flags[name] = fact
  return [name for name in argument.option_strings if name.startswith('--')][:1]


def _parse(root: str) -> None:
  """Inside gcloud's own Python: for each line 'ok' or the exit code."""
  import contextlib
  import io

  parser = _gcloud_cli(root)._CLI__parser
  for line in sys.stdin:
    said = io.StringIO()
    try:
      with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        parser.parse_args(json.loads(line)[1:])
      print('ok', flush=True)
    except SystemExit as end:
      print(json.dumps(f'exit {end.code}: {said.getvalue()}'), flush=True)


def _record_kubectl() -> dict:
  def ask(*words: str) -> str:
    return subprocess.run(['kubectl', *words], capture_output=True, text=True, check=True).stdout

  version = re.search(r'Client Version: (\S+)', ask('version', '--client'))[1]
  commands = {name: {'flags': _kubectl_flags(ask(*name.split(), '--help'))} for name in KUBECTL}
  return {'version': f'kubectl {version}', 'global': _kubectl_flags(ask('options')), 'commands': commands}


def _kubectl_flags(text: str) -> dict:
  """-f, --filename=[]:  -> both names, which take a value; one that is true or false need not."""
  flags = {}
  for short, name, default in re.findall(r'^ {4}(?:(-\w), )?(--[\w-]+)=(.*):$', text, re.MULTILINE):
    for word in filter(None, (short, name)):
      flags[word] = {'value': default not in ('true', 'false')}
  return dict(sorted(flags.items()))


def main(words: list[str]) -> None:
  root = gcloud_root()
  if words[:1] == ['--gcloud']:
    return _record_gcloud(words[1])
  if words[:1] == ['--parse']:
    return _parse(words[1])
  if 'kubectl' in words or not words:
    _write('kubectl', _record_kubectl())
  if 'gcloud' in words or not words:
    run = [gcloud_python(root), __file__, '--gcloud', str(root)]
    _write('gcloud', json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout))


def _write(name: str, facts: dict) -> None:
  (HERE / f'{name}.json').write_text(json.dumps(facts, indent=1) + '\n')


if __name__ == '__main__':
  main(sys.argv[1:])
