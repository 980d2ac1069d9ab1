"""Held-out sums against values made by hand."""

import math

import numpy as np
import pytest

from llamax.evaluate.heldout import heldout_metrics


def test_ragged_tails_weigh_by_their_tokens():
  # Token t costs t nats; padding has id 9, which would cost most.
  rows = [
    {'targets': np.array([[1, 2], [3, 9]]), 'segment_ids': np.array([[1, 1], [1, 0]])},
    {'targets': np.array([[4, 9], [9, 9]]), 'segment_ids': np.array([[1, 0], [0, 0]])},
  ]

  def eval_step(params, batch):
    real = batch['segment_ids'] != 0
    return {'nll': (batch['targets'] * real).sum() * params, 'tokens': real.sum()}

  byte_lengths = np.array([0, 1, 2, 3, 4, 0, 0, 0, 0, 100])
  found = heldout_metrics(eval_step, 0.5, rows, lambda batch: batch, byte_lengths)
  assert found['tokens'] == 4
  assert found['loss'] == pytest.approx((1 + 2 + 3 + 4) * 0.5 / 4)
  assert found['perplexity'] == pytest.approx(math.exp(1.25))
  assert found['bits_per_byte'] == pytest.approx(5 / math.log(2) / 10)


def test_an_empty_split_is_a_zero_not_a_crash():
  found = heldout_metrics(lambda p, b: {}, 1.0, [], lambda b: b, np.zeros(4))
  assert found['tokens'] == 0


def test_whoever_asks_to_stop_is_heard_between_batches():
  rows = [{'targets': np.zeros((1, 2), int), 'segment_ids': np.ones((1, 2))}] * 9
  done = []

  def eval_step(params, batch):
    done.append(batch)
    return {'nll': np.float32(len(done)), 'tokens': 2}

  def stop(after):
    return after == 4

  assert heldout_metrics(eval_step, 1.0, rows, lambda b: b, np.zeros(4), stop) is None
  assert len(done) == 4
