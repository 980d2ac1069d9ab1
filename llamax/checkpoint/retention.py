"""Which checkpoints of a run are kept: a function of what is there."""

from collections.abc import Iterable, Mapping

from llamax.core.config import CheckpointConfig


def reasons(
  steps: Iterable[int], losses: Mapping[int, float], protected: Iterable[int], cfg: CheckpointConfig
) -> dict[int, list[str]]:
  """{step: why it is kept}; a step with no reason may go.

  Args:
    steps: the committed ones.
    losses: validation loss at those steps that were evaluated.
    protected: steps that were the newest when trouble began.
  """
  ordered = sorted(steps)
  kept: dict[int, list[str]] = {step: [] for step in ordered}
  for step in ordered[-cfg.keep_last :]:
    kept[step].append('latest')
  if cfg.keep_every is not None:
    for step in ordered:
      if step % cfg.keep_every == 0:
        kept[step].append(f'each {cfg.keep_every}')
  if cfg.keep_best:
    # Of equals the newer one: it has seen more.
    best = sorted((s for s in ordered if s in losses), key=lambda s: (losses[s], -s))
    for step in best[: cfg.keep_best]:
      kept[step].append('best')
  if cfg.keep_before_trouble:
    for step in sorted(set(protected) & set(ordered))[-cfg.keep_before_trouble :]:
      kept[step].append('before trouble')
  return kept


def to_remove(
  steps: Iterable[int], losses: Mapping[int, float], protected: Iterable[int], cfg: CheckpointConfig
) -> list[int]:
  """The steps that no rule keeps, ascending. The newest one is never among them."""
  return [step for step, why in reasons(steps, losses, protected, cfg).items() if not why]
