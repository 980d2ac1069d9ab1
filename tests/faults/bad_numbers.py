"""Puts bad numbers into training: into the gradients of a step; into the batches, the weights of a run."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from llamax.train import step as step_module

VALUES = (float('nan'), float('inf'), float('-inf'))
LOSS, ALL, WITHIN, LEAF = 1, 2, 3, 4  # places; LEAF + i: leaf number i


def faulty_step(patch):
  """The train step does to itself what `fault` [B, T] of its batch says: 0, or 3 x place + value.

  LOSS: the loss, with sound gradients. ALL: every gradient. WITHIN: the loss of one microbatch, before its
  gradients are taken. LEAF + i: one element of one gradient, which lies on one device.

  Args:
    patch: (module, name, value), as monkeypatch.setattr.
  """
  gradients, loss_sums = step_module._gradients, step_module.loss_sums

  def faulty_gradients(params, batch, key, **settings):
    place, value = jnp.divmod(batch['fault'].max(), 3)
    value = jnp.array(VALUES)[value]
    grads, sums = gradients(params, batch, key, **settings)
    leaves, tree = jax.tree.flatten(grads)
    for i, leaf in enumerate(leaves):
      where = place == LEAF + i
      for dim in range(leaf.ndim):
        where = where & (jax.lax.broadcasted_iota(jnp.int32, leaf.shape, dim) == leaf.shape[dim] - 1)
      leaves[i] = jnp.where(where | (place == ALL), value, leaf)
    sums = jax.tree.map(lambda x: jnp.where(place == LOSS, value, x), sums)
    return jax.tree.unflatten(tree, leaves), sums

  def faulty_sums(params, batch, key, **settings):
    batch = dict(batch)
    place, value = jnp.divmod(batch.pop('fault', jnp.zeros((), jnp.int32)).max(), 3)  # An evaluation has none.
    sums = loss_sums(params, batch, key, **settings)
    factor = jnp.where(place == WITHIN, jnp.array(VALUES)[value], 1.0)
    return sums._replace(total=sums.total * factor, nll=sums.nll * factor)

  patch(step_module, '_gradients', faulty_gradients)
  patch(step_module, 'loss_sums', faulty_sums)


def train(plan: str, *words: str) -> int:
  """`llamax train WORDS` where things go wrong as `plan` says, a JSON mapping:

  nan: numbers of batches in the stream that give a NaN. poison: ... whose targets are all one rare id.
  weights: after how many steps the weights hold a NaN when they are saved. skips: batches left out from the
  start. kill: which instant of a roll-back, counted from 1, is the last. die: step shown last.
  """
  from llamax.cli.main import main
  from llamax.data import pipeline
  from llamax.data.mixture import batch_of_step
  from llamax.train import loop

  todo = {'nan': (), 'poison': (), 'weights': None, 'skips': None, 'kill': 0, 'die': None, **json.loads(plan)}
  faulty_step(setattr)
  batches = pipeline.TrainingData.batches

  def bad_batches(self, *, start_step, skips=(), **settings):
    skips = todo['skips'] or skips
    stream = batches(self, start_step=start_step, skips=skips, **settings)
    for step, batch in enumerate(stream, start_step):
      number = batch_of_step(step, skips)
      fault = 3 * (ALL if number % 2 else LOSS) if number in todo['nan'] else 0
      batch['fault'] = np.full_like(batch['tokens'], fault)
      if number in todo['poison']:
        batch['targets'] = np.full_like(batch['targets'], 511)
      yield batch

  pipeline.TrainingData.batches = bad_batches
  save = loop.save

  def bad_save(r, state, step, *args):
    if step == todo['weights']:
      params = jax.tree.map(jnp.copy, state.params)
      params['final_norm']['scale'] = params['final_norm']['scale'].at[3].set(jnp.nan)
      state = state.replace(params=params)
    save(r, state, step, *args)

  loop.save = bad_save
  make_progress = loop.make_progress

  def mortal_progress(*args):
    progress = make_progress(*args)
    advance = progress.advance
    progress.advance = lambda step: (
      os.kill(os.getpid(), signal.SIGKILL) if step == todo['die'] else advance(step)
    )
    return progress

  loop.make_progress = mortal_progress
  if todo['kill']:
    kill_in_rollback(todo['kill'])
  return main(['train', *words])


def kill_in_rollback(number: int) -> None:
  """SIGKILL before or after one act of a roll-back: from its decision on, until the next step begins."""
  from llamax.checkpoint.manager import Checkpoints
  from llamax.core import storage
  from llamax.observe import jsonl
  from llamax.observe.writer import Writer
  from llamax.train import loop

  passed = [0]
  active = [False]

  def instant():
    passed[0] += active[0]
    if active[0] and passed[0] == number:
      os.kill(os.getpid(), signal.SIGKILL)

  def around(owner, name):
    act = getattr(owner, name)

    @functools.wraps(act)
    def mortal(*args, **settings):
      instant()
      result = act(*args, **settings)
      instant()
      return result

    setattr(owner, name, mortal)

  for owner, name in (
    (storage, 'move'),
    (storage, 'write_json'),
    (storage, 'remove_tree'),
    (jsonl.JsonLines, 'append'),
    (Checkpoints, 'wait'),
    (Checkpoints, 'protect'),
    (Checkpoints, 'drop'),
    (Checkpoints, 'restore'),
    (Writer, 'truncate_after'),
  ):
    around(owner, name)
  roll_back, global_batch = loop.roll_back, loop.global_batch

  def begin(*args):
    active[0] = True
    return roll_back(*args)

  def end(*args):
    active[0] = False
    return global_batch(*args)

  loop.roll_back, loop.global_batch = begin, end
