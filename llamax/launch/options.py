"""What the TPU compiler is told beside its defaults: one table, by generation."""

from collections.abc import Mapping
from dataclasses import dataclass

from llamax.launch.tpus import GENERATIONS


@dataclass(frozen=True)
class Option:
  """
  Args:
    generations: those that it is for.
    several_slices: for runs over several slices alone.
    why: what it changes, who says so, what was measured.
  """

  name: str
  value: str
  generations: tuple[str, ...]
  why: str
  several_slices: bool = False


# Few, on purpose: each of the compiler's 2,000 flags has a default that its authors tune with every release.
# What is here was seen to help a train step under the compiler, or is what MaxText sets for the network
# between slices. tests/launch/test_options.py shows that the compiler takes each of them, for each generation.
OPTIONS = (
  Option(
    'xla_tpu_prefer_async_allgather_to_allreduce',
    'true',
    ('v5p',),
    'Weights that are sharded (mesh.fsdp) are gathered by synchronous all-reduces on v5p, of twice the bytes. '
    'With it they became asynchronous all-gathers, 4.9 % fewer predicted cycles, for a plain llama of 8B on '
    'v5p:4x4x4; for 4 layers of configs/1b.py it changed nothing (libtpu 0.0.42.1).',
  ),
  Option(
    'xla_tpu_enable_data_parallel_all_reduce_opt',
    'true',
    tuple(GENERATIONS),
    'Gradients of one layer travel between slices, over the data centre network, while those of the next are '
    'computed. MaxText sets it for every run over several slices; not measured here.',
    several_slices=True,
  ),
  Option(
    'xla_tpu_data_parallel_opt_different_sized_ops',
    'true',
    tuple(GENERATIONS),
    'The same for gradients of different sizes; the two go together.',
    several_slices=True,
  ),
)


def options(generation: str, slices: int = 1) -> dict[str, str]:
  """Name -> value: what `lowered.compile(compiler_options=...)` takes."""
  return {
    option.name: option.value
    for option in OPTIONS
    if generation in option.generations and (slices > 1 or not option.several_slices)
  }


def environment(generation: str, slices: int, own: Mapping[str, str]) -> dict[str, str]:
  """`own` with LIBTPU_INIT_ARGS, in which what the user has set there comes last, so that it wins."""
  ours = [f'--{name}={value}' for name, value in options(generation, slices).items()]
  theirs = own.get('LIBTPU_INIT_ARGS', '').strip()  # Its quotes are libtpu's to read.
  words = [*ours, theirs] if theirs else ours
  return {**own, **({'LIBTPU_INIT_ARGS': ' '.join(words)} if words else {})}
