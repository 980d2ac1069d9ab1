"""What `llamax prepare` says of a dataset when it is done."""

from typing import Any

from llamax.data.format import TRAIN, VALIDATION


def render(folder: str, manifest: dict[str, Any], complete_before: bool, seconds: float) -> str:
  """A table of the splits, one of the file types, what was dropped, how long it took."""
  lines = [f'{"split":<12}{"documents":>12}{"bytes":>16}{"tokens":>16}{"bytes/token":>13}{"shards":>8}']
  for name, split in manifest['splits'].items():
    lines.append(_row(name, split) + f'{len(split["files"]):>8}')
  if len(manifest['types']) > 1:
    lines.append('by type')
    lines += [_row(name, facts) for name, facts in list(manifest['types'].items())[:12]]
    if len(manifest['types']) > 12:
      lines.append(f'... {len(manifest["types"]) - 12} more types in prepare.json')
  dropped = ', '.join(f'{count} {reason}' for reason, count in manifest['dropped'].items())
  lines.append(f'dropped: {dropped or "nothing"}')
  unknown = sum(split['unknown'] for split in manifest['splits'].values())
  if unknown:
    lines.append(f'{unknown} tokens are <unk>: this tokenizer cannot spell all of the text')
  lines += _warnings(manifest)
  lines.append(f'vocabulary {manifest["vocab_size"]}, tokenizer {manifest["tokenizer"]["sha256"][:12]}')
  if complete_before:
    lines.append(f'{folder} is complete: nothing to do ({seconds:.1f} s)')
  else:
    stages = ', '.join(f'{stage} {spent:.1f} s' for stage, spent in manifest['seconds'].items())
    lines.append(f'{folder} is ready ({seconds:.1f} s: {stages})')
  return '\n'.join(lines)


def _row(name: str, facts: dict[str, Any]) -> str:
  ratio = facts['bytes'] / facts['tokens']
  return f'{name:<12}{facts["documents"]:>12,}{facts["bytes"]:>16,}{facts["tokens"]:>16,}{ratio:>13.3f}'


def _warnings(manifest: dict[str, Any]) -> list[str]:
  if VALIDATION in manifest['splits']:
    return []
  if manifest['splits'].get(TRAIN, {}).get('documents') == 1:
    return [
      'no validation split: there is one document. Documents are never cut in two splits: give the text as '
      'several files, or as JSON lines, to have one'
    ]
  return ['no validation split: validation_fraction is 0']
