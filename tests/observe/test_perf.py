"""FLOPs against a count of every product, the clock against times that one can add up."""

import dataclasses
import math
import types

import jax
import numpy as np
import pytest

from llamax.observe import perf

T, V, D, L, N, K, H, F = 12, 19, 10, 3, 4, 2, 6, 7


def model(tiny_config, **changes):
  sizes = {
    'vocab_size': V, 'd_model': D, 'num_layers': L, 'num_heads': N, 'num_kv_heads': K, 'head_dim': H, 'd_ff': F,
    'sliding_window': 0, 'tie_embeddings': False,
  }  # fmt: skip
  return dataclasses.replace(tiny_config().model, **(sizes | changes))


def count_products(window, tied):
  """(parameters, multiply-adds of one row outside attention, of its attention), by walking every matrix.

  No norms: their parameters multiply elements, which the conventions count as if they were matrices.
  """
  matrices = [(D, N * H), (D, K * H), (D, K * H), (N * H, D), (D, F), (D, F), (F, D)] * L + [(D, V)]
  params = sum(a * b for a, b in matrices) + (0 if tied else V * D)
  dense = T * sum(a * b for a, b in matrices)
  pairs = sum(1 for t in range(T) for s in range(t + 1) if not window or t - s < window)
  return params, dense, L * N * 2 * H * pairs


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('window', [0, 1, 5, 12, 40])
def test_flops_are_those_of_every_product(tiny_config, window, tied):
  params, dense, attention = count_products(window, tied)
  flops = perf.flops_per_token(model(tiny_config, sliding_window=window, tie_embeddings=tied), params, T)
  without = 6.0 * dense / T
  assert flops.palm - without == pytest.approx(2 * (flops.causal - without))
  # The convention takes the staircase of the mask's first rows for a slope: W / 2 T keys per query fewer.
  slope = 6.0 * 2 * L * N * H * min(window or T, T) / (2 * T)
  assert flops.causal - without == pytest.approx(6.0 * attention / T - slope)


def test_known_models_by_hand(tiny_config):
  llama3_8b = dataclasses.replace(
    model(tiny_config), vocab_size=128_256, d_model=4096, num_layers=32, num_heads=32, head_dim=128
  )
  flops = perf.flops_per_token(llama3_8b, 8_030_261_248, 8192)
  assert flops.causal == 6 * (8_030_261_248 - 128_256 * 4096) + 6 * 32 * 32 * 128 * 8192
  assert flops.causal == pytest.approx(51.47e9, rel=1e-3)
  assert flops.palm == pytest.approx(57.92e9, rel=1e-3)


def test_attention_span():
  for window in (0, 4096, 9000):
    assert perf.attention_span(4096, window) == 4096
  assert perf.attention_span(32768, 4096) == 2 * 4096 - 512


@pytest.mark.parametrize(
  'kind, tflops, gib',
  [
    ('TPU v4', 275, 32), ('TPU v5 lite', 197, 16), ('TPU v5e', 197, 16), ('TPU v5p', 459, 95),
    ('TPU v5', 459, 95), ('TPU v6 lite', 918, 32), ('TPU v6e', 918, 32), ('TPU7x', 2307 / 2, 96),
    ('NVIDIA H100 80GB HBM3', 989, 80), ('NVIDIA H100 PCIe', 756, 80), ('NVIDIA H100 NVL', 835, 94),
    ('NVIDIA H200', 989, 141), ('NVIDIA B200', 2250, 180), ('B200', 2250, 180), ('A100', 312, 40),
    ('NVIDIA A100-SXM4-40GB', 312, 40), ('NVIDIA A100-SXM4-80GB', 312, 80), ('NVIDIA A100 80GB PCIe', 312, 80),
  ],
)  # fmt: skip
def test_what_a_device_can_do(kind, tflops, gib):
  assert perf.peak_flops(kind) == pytest.approx(tflops * 1e12)
  assert perf.hbm_bytes(kind) == gib * 2**30


@pytest.mark.parametrize(
  'kind', ['cpu', '', 'TPU v5x', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA GH200 480GB', 'NVIDIA A1000']
)
def test_an_unknown_kind_has_no_peak(kind):
  assert perf.peak_flops(kind) is None
  assert perf.hbm_bytes(kind) is None


def test_a_device_that_is_one_core_is_half_a_chip():
  assert perf.peak_flops('TPU v4', 1) == 137.5e12
  assert perf.peak_flops('TPU v4', 2) == perf.peak_flops('TPU v4')
  assert perf.peak_flops('TPU7x', 1) == perf.peak_flops('TPU7x')
  assert perf.peak_flops('TPU v5 lite', 1) == 197e12
  assert perf.hbm_bytes('TPU v4', 1) == 16 * 2**30


def test_perplexity():
  assert perf.perplexity(math.log(17)) == pytest.approx(17)
  assert math.isfinite(perf.perplexity(1e9)) and math.isfinite(perf.perplexity(math.inf))
  assert math.isnan(perf.perplexity(math.nan))


def device(stats):
  def memory_stats():
    if isinstance(stats, Exception):
      raise stats
    return stats

  return types.SimpleNamespace(memory_stats=memory_stats)


def test_device_memory_is_the_fullest_device():
  devices = [device({'peak_bytes_in_use': 5, 'bytes_in_use': 90}), device({'peak_bytes_in_use': 7})]
  assert perf.peak_memory_bytes(devices) == 7


@pytest.mark.parametrize('stats', [None, {}, {'bytes_in_use': 3}, NotImplementedError()])
def test_without_device_memory_the_process_is_measured(stats):
  block = np.ones(8_000_000)
  assert perf.peak_memory_bytes([device(stats)]) > block.nbytes


def test_cpu_devices_give_the_process_memory():
  assert perf.peak_memory_bytes(jax.local_devices()) > 50e6


class Clock:
  def __init__(self):
    self.time = 1000.0

  def __call__(self):
    return self.time


@pytest.fixture
def now():
  return Clock()


def step_clock(now, peak=None):
  return perf.StepClock(now=now, num_devices=4, num_steps=100, flops=perf.Flops(6e9, 8e9), peak=peak)


def first_step(clock, now):
  now.time += 3  # init
  with clock.first_step():
    now.time += 20


def test_the_first_step_is_in_no_average(now):
  clock = step_clock(now)
  first_step(clock, now)
  assert clock.rates(1, [1_000_000]) == {'compile_seconds': 20}
  now.time += 2
  rates = clock.rates(2, [800])
  assert rates == {
    'tokens_per_second': 400,
    'tokens_per_second_per_device': 100,
    'step_seconds': 2,
    'data_wait_fraction': 0,
    'eta_seconds': 2 * 98,
  }


def test_the_first_step_can_share_a_window(now):
  clock = step_clock(now)
  with clock.phase('data_wait'):
    now.time += 50  # filling the pipeline before the first step slows no later one
  first_step(clock, now)
  now.time += 8
  rates = clock.rates(5, [1_000_000, 100, 200, 300, 200])
  assert rates['compile_seconds'] == 20
  assert rates['step_seconds'] == 2
  assert rates['tokens_per_second'] == 100
  assert 'compile_seconds' not in clock.rates(5, [])


def test_evaluating_or_saving_does_not_slow_the_steps_but_the_end(now):
  clock = step_clock(now)
  first_step(clock, now)
  now.time += 2
  with clock.phase('data_wait'):
    now.time += 2
  with clock.phase('eval'):
    now.time += 30
    with clock.phase('save'):
      now.time += 6
  rates = clock.rates(3, [1, 400, 400])
  assert rates['step_seconds'] == 2
  assert rates['tokens_per_second'] == 200
  assert rates['data_wait_fraction'] == 0.5
  assert rates['eta_seconds'] == (40 / 2) * 97


def test_mfu_under_both_conventions(now):
  clock = step_clock(now, peak=1e12)
  first_step(clock, now)
  now.time += 1
  rates = clock.rates(2, [1, 100])
  assert rates['mfu'] == pytest.approx(100 * 6e9 / 4e12)
  assert rates['mfu_palm'] == pytest.approx(100 * 8e9 / 4e12)


def test_every_second_is_booked_once(now):
  clock = step_clock(now)
  first_step(clock, now)
  now.time += 7
  with clock.phase('eval'):
    now.time += 2
    with clock.phase('data_wait'):
      now.time += 1
  with pytest.raises(RuntimeError), clock.phase('save'):
    now.time += 4
    raise RuntimeError
  now.time += 3
  books = clock.goodput()
  assert books == {
    'goodput/init_seconds': 3, 'goodput/compile_seconds': 20, 'goodput/train_seconds': 10,
    'goodput/data_wait_seconds': 1, 'goodput/eval_seconds': 2, 'goodput/sample_seconds': 0,
    'goodput/save_seconds': 4, 'goodput/report_seconds': 0, 'goodput/fraction': 10 / 40,
  }  # fmt: skip
  assert sum(books.values()) - books['goodput/fraction'] == now.time - 1000


def test_a_clock_that_stands_still_gives_no_rate(now):
  clock = step_clock(now)
  first_step(clock, now)
  assert clock.rates(2, [5, 5]) == {'compile_seconds': 20}


def test_an_unknown_phase_is_our_mistake(now):
  with pytest.raises(AssertionError), step_clock(now).phase('lunch'):
    pass
