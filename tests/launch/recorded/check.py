"""Whether a command line is one that the recorded gcloud or kubectl takes."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path


@functools.cache
def facts(tool: str) -> dict:
  return json.loads(Path(__file__).with_name(f'{tool}.json').read_text())


def check(argv: Sequence[str]) -> str:
  """The command's name, 'compute tpus tpu-vm ssh'; AssertionError for a line that the tool would refuse."""
  tool, *words = argv
  known = facts(tool)
  name = max(
    (name for name in known['commands'] if words[: len(name.split())] == name.split()), key=len, default=''
  )
  assert name, f'{words[:4]}: not recorded; see record.py'
  command = known['commands'][name]
  flags, places = _read(words[len(name.split()) :], {**known.get('global', {}), **command['flags']})
  for flag, fact in command['flags'].items():
    assert not fact.get('required') or flag in flags, f'{name}: lacks {flag}'
  for rule in command.get('rules', ()):
    _check_rule(name, rule, flags)
  if 'positionals' in command:
    least = sum(place['required'] for place in command['positionals'])
    most = None if any(place['many'] for place in command['positionals']) else len(command['positionals'])
    assert least <= len(places) and (most is None or len(places) <= most), f'{name}: {places}'
  return name


def _read(words: Sequence[str], known: dict) -> tuple[set[str], list[str]]:
  flags, places, rest = set(), [], list(words)
  while rest:
    word = rest.pop(0)
    if word == '--':
      return flags, places + rest
    if not word.startswith('-') or word == '-':
      places.append(word)
      continue
    flag, equals, value = word.partition('=')
    assert flag in known, f'{flag}: not known'
    if known[flag]['value'] and not equals:
      assert rest and not rest[0].startswith('--'), f'{flag}: lacks its value'
      value = rest.pop(0)
    assert known[flag]['value'] or not equals or value in ('true', 'false'), f'{flag}: takes no value'
    assert value in known[flag].get('choices', [value]), f'{flag}={value}: want {known[flag]["choices"]}'
    flags.add(flag)
  return flags, places


def _check_rule(name: str, rule: dict, flags: set[str]) -> None:
  if 'one_of' in rule:
    given = [members for members in rule['one_of'] if flags & set(members)]
    assert len(given) <= 1, f'{name}: {given} exclude each other'
    assert given or not rule['required'], f'{name}: lacks one of {rule["one_of"]}'
  else:
    assert any(flags & set(members) for members in rule['any_of']), f'{name}: lacks one of {rule["any_of"]}'
