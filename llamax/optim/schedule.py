"""Learning-rate schedules: step -> rate."""

import optax

from llamax.core.config import OptimConfig
from llamax.core.errors import pick


def make_schedule(cfg: OptimConfig, num_steps: int) -> optax.Schedule:
  """Warm-up, then the named decay; the rate of step s (from 0) is `schedule(s)`.

  Step s of the warm-up has (s + 1) / warmup_steps of the peak, so that no step is spent at rate 0. After it:
    constant      the peak
    cosine        half a cosine to end_lr_fraction of the peak at num_steps
    linear        a line to end_lr_fraction of the peak at num_steps
    inverse_sqrt  peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, 5.3)
    wsd           the peak, then a line over the last decay_steps to end_lr_fraction of it (MiniCPM,
                  Hu et al. 2024, 4.2)
  """
  peak, warmup = cfg.learning_rate, cfg.warmup_steps
  rest = max(num_steps - warmup, 1)
  end = peak * cfg.end_lr_fraction
  decays = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(peak, rest, cfg.end_lr_fraction),
    'linear': lambda: optax.linear_schedule(peak, end, rest),
    'inverse_sqrt': lambda: lambda step: peak * (max(warmup, 1) / (step + max(warmup, 1))) ** 0.5,
    'wsd': lambda: optax.linear_schedule(
      peak, end, max(cfg.decay_steps, 1), transition_begin=max(rest - cfg.decay_steps, 0)
    ),
  }
  decay = pick(decays, cfg.schedule, 'optim.schedule')()
  if not warmup:
    return decay
  ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([ramp, decay], [warmup])
