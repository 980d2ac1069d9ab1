"""llamax generate: text from a trained model."""

import argparse
import collections
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamax.core.errors import UserError

if TYPE_CHECKING:
  from llamax.api import Loaded
  from llamax.generate.text import Completion


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--workdir', required=True, metavar='DIR', help='the folder of a run')
  parser.add_argument('--step', type=int, metavar='N', help='its checkpoint of this step (default: the newest)')
  parser.add_argument('--prompt', action='append', metavar='TEXT', help='text to go on with; may be repeated')
  parser.add_argument(
    '--prompt_file',
    action='append',
    metavar='FILE',
    help='a text file: one prompt; or .jsonl: a string or {"prompt": string} per line; -: standard input',
  )
  parser.add_argument('--max_new_tokens', type=int, metavar='N')
  parser.add_argument('--temperature', type=float, metavar='X', help='0: always the most probable token')
  parser.add_argument('--top_k', type=int, metavar='N', help='draw from the N most probable; 0: from all')
  parser.add_argument('--top_p', type=float, metavar='X', help='draw from the fewest that hold X; 1: from all')
  parser.add_argument('--min_p', type=float, metavar='X', help='leave out what has less than X of the highest')
  parser.add_argument('--greedy', action='store_true', help='the same as --temperature=0')
  parser.add_argument('--seed', type=int, metavar='N')
  parser.add_argument('--stop', action='append', metavar='TEXT', help='end before this text; may be repeated')
  parser.add_argument('--num_samples', type=int, default=1, metavar='N', help='texts per prompt (default: 1)')
  parser.add_argument('--json', action='store_true', help='a JSON object per text, on a line')
  parser.epilog = "Prompts, options that are not given are those of the run's config, section sample."


def main(args: argparse.Namespace) -> int:
  options = _options(args)
  prompts = list(args.prompt or []) + [p for file in args.prompt_file or [] for p in _read_prompts(file)]
  from llamax import api

  loaded = api.load(args.workdir, args.step)
  prompts = prompts or list(loaded.config.sample.prompts)
  if not prompts:
    raise UserError('no prompt: give --prompt=TEXT')
  start = time.monotonic()
  if len(prompts) == args.num_samples == 1 and not args.json:
    done = [_stream(loaded, prompts[0], options)]
  else:
    prompts = [prompt for prompt in prompts for _ in range(args.num_samples)]
    done = loaded.generate(prompts, **options)
    _show(loaded, prompts, done, args.json)
  seconds, tokens = time.monotonic() - start, sum(len(one.ids) for one in done)
  counts = collections.Counter(one.finish for one in done)
  ends = ', '.join(f'{count} by {end}' for end, count in sorted(counts.items()))
  print(f'step {loaded.step:,}: {tokens:,} tokens in {seconds:.1f} s; ended: {ends}', file=sys.stderr)
  return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
  """Sampling options; None stands for the config's."""
  if args.greedy and args.temperature:
    raise UserError(f'--greedy is --temperature=0; got --temperature={args.temperature} beside it')
  if args.num_samples < 1:
    raise UserError(f'--num_samples={args.num_samples}: want at least 1')
  names = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'min_p', 'seed', 'stop')
  return {name: getattr(args, name) for name in names} | ({'temperature': 0.0} if args.greedy else {})


def _read_prompts(file: str) -> list[str]:
  try:
    text = sys.stdin.read() if file == '-' else Path(file).read_text(encoding='utf-8')
  except OSError as error:
    raise UserError(f'--prompt_file={file} cannot be read: {error.strerror}') from None
  except UnicodeDecodeError as error:
    raise UserError(f'--prompt_file={file} is not UTF-8 text: {error}') from None
  if not file.endswith('.jsonl'):
    return [text]
  lines = enumerate(text.split('\n'), 1)  # splitlines would also cut at characters that JSON strings may hold
  return [_prompt_of(line, f'{file}:{number}') for number, line in lines if line.strip()]


def _prompt_of(line: str, where: str) -> str:
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise UserError(f'{where} is not JSON: {error}') from None
  prompt = value.get('prompt') if isinstance(value, dict) else value
  if not isinstance(prompt, str):
    raise UserError(f'{where}: want a string or {{"prompt": string}}, got {line[:60]}')
  return prompt


def _stream(loaded: 'Loaded', prompt: str, options: dict[str, Any]) -> 'Completion':
  pieces = loaded.stream(prompt, **options)
  print(prompt, end='', flush=True)
  while True:
    try:
      print(next(pieces), end='', flush=True)
    except StopIteration as end:
      print()
      return end.value


def _show(loaded: 'Loaded', prompts: list[str], done: 'list[Completion]', as_json: bool) -> None:
  for index, (prompt, one) in enumerate(zip(prompts, done, strict=True)):
    if as_json:
      # JSON has no NaN.
      logprobs = [p if math.isfinite(p) else None for p in one.logprobs]
      fields = {'prompt': prompt, 'text': one.text, 'finish': one.finish, 'step': loaded.step}
      print(json.dumps(fields | {'ids': one.ids, 'logprobs': logprobs}, ensure_ascii=False))
    else:
      print(f'--- {index + 1} of {len(done)} ---\n{prompt}{one.text}')
