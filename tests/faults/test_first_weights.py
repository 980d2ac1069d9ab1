"""Several processes begin with the weights of a checkpoint: all train as one process does."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamax.checkpoint.manager import Checkpoints
from llamax.convert import copy, formats
from llamax.convert.target import Model
from llamax.core.exits import DONE, MISTAKE
from llamax.observe.ledger import read_ledger
from llamax.train.program import make_program
from tests.faults.processes import start

SECONDS = 240


@pytest.fixture
def sources(run_config, tiny_data, tmp_path):
  """{format: path} of one set of weights."""
  config = run_config()
  state = make_program(config, jax.devices()).state
  rng = np.random.default_rng(0)
  filled = jax.tree.map(
    lambda x: jax.device_put(rng.normal(0, 0.05, x.shape).astype(x.dtype), x.sharding), state.params
  )
  with Checkpoints(tmp_path / 'source/checkpoints', config.checkpoint) as checkpoints:
    checkpoints.save(5, {'params': filled, 'step': jnp.int32(5)}, {'config': config.to_mapping()})
  shutil.copy(Path(tiny_data) / 'tokenizer.model', tmp_path / 'source/tokenizer.model')
  source = formats.open_source(tmp_path / 'source')
  target = formats.open_target('hf', Model(source.cfg, source.family, source.tokenizer, source.generation))
  silent = {'progress': lambda count: None, 'say': lambda text: None}
  steps = copy.make_plan(source, target, None)
  copy.copy(source, target, steps, tmp_path / 'hf', {}, threads=2, **silent)
  return {'llamax': tmp_path / 'source', 'hf': tmp_path / 'hf'}


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line['loss'] for line in lines if 'loss' in line]


def test_two_processes_begin_as_one_does(server, sources, tiny_data, tmp_path):
  found = {}
  for name, count, path in (('one', 1, 'hf'), ('two', 2, 'hf'), ('ours', 2, 'llamax')):
    changes = {'train.num_steps': 2, 'train.init_from': sources[path]}
    run = start(server, count, tiny_data, tmp_path / name, **changes)
    assert run.codes(SECONDS) == [DONE] * count, run.screens()
    found[name] = losses(tmp_path / name)
    events = [line for line in read_ledger(tmp_path / name) if line['event'] == 'initial']
    assert [event['path'] for event in events] == [str(sources[path])]
  assert len(found['one']) == 2 and found['two'] == found['ours']
  np.testing.assert_allclose(found['two'], found['one'], rtol=1e-5)


def test_all_processes_refuse_another_model(server, sources, tiny_data, tmp_path):
  changes = {'train.num_steps': 2, 'train.init_from': sources['hf'], 'model.d_ff': 96}
  run = start(server, 2, tiny_data, tmp_path / 'run', **changes)
  assert run.codes(SECONDS) == [MISTAKE] * 2, run.screens()
  assert 'model.d_ff' in run.screens()
