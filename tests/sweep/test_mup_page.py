"""The commands of docs/sweep/mup.md work as they stand there: configs load, sweeps expand."""

import shlex

import pytest

from llamax.cli.configure import load, load_sweep
from llamax.sweep import space as s
from llamax.sweep.plan import make_plan
from tests.launch.documents import ROOT, commands

FOUND = [shlex.split(command)[1:] for _, command in commands(ROOT / 'docs/sweep/mup.md')]


def flags(words):
  """(value of --config, overrides)."""
  pairs = [word[2:].partition('=')[::2] for word in words if '=' in word]
  return dict(pairs)['config'], [(key[7:], text) for key, text in pairs if key.startswith('config.')]


def test_a_model_of_four_times_the_base_width():
  (words,) = (words for words in FOUND if words[0] == 'train')
  model = load(*flags(words))[0].model
  assert (model.d_model, model.mup_base_width, model.d_ff / model.d_model) == (512, 128, 2.75)


@pytest.mark.parametrize(
  ('name', 'runs'), [('mup_sweep', 25), ('batch_size_sweep', 12), ('schedule_sweep', 12)]
)
def test_a_sweep_expands_to_runs_whose_configs_hold(name, runs):
  (words,) = (words for words in FOUND if words[0] == 'sweep' and name in words[1])
  config, overrides = flags(words)
  space, resolve = load_sweep(config, overrides, s)
  plan, configs = make_plan(config, overrides, space, resolve, None)
  assert len(plan.runs) == runs
  tokens = {each.train.num_steps * each.batch_size * each.data.seq_len for each in configs}
  assert len(tokens) == 1


def test_each_parametrisation_alone_has_all_widths():
  for arg, base in (('mup', 64), ('standard', None)):
    space, resolve = load_sweep(f'configs/mup_sweep.py:{arg}', [], s)
    _, configs = make_plan('x', [], space, resolve, None)
    assert {(each.model.d_model, each.model.mup_base_width) for each in configs} == {
      (width, base) for width in (64, 128, 256)
    }
