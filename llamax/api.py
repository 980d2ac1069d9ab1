"""What Python programs, notebooks call: train a model, load one, let it speak."""

import dataclasses
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llamax.cli import configure
from llamax.core.config import ComputeConfig, Config, MeshConfig, ModelConfig, unflatten
from llamax.core.errors import UserError
from llamax.core.types import PyTree

if TYPE_CHECKING:
  from llamax.data.tokenizer import Tokenizer
  from llamax.generate.text import Completion
  from llamax.train.loop import Result


def train(config: Any, workdir: str | Path) -> 'Result':
  """Trains, or goes on with the run in `workdir`, as `llamax train` does. Also to be had as `llamax.train`.

  Args:
    config: a Config, a ConfigDict or nested mapping with every key, or the path of a config file.

  Raises:
    UserError: a config or workdir that cannot work, before any training.
  """
  from llamax.train.loop import run

  if isinstance(config, (str, Path)):
    config = load_config(config)
  return run(config if isinstance(config, Config) else configure.resolve(config), workdir)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
  """The config of a file (`configs/x.py`, `configs/x.py:arg`), with other values for some dotted keys.

  Raises:
    UserError: no such file, an unknown key, a wrong value.
  """
  _, provenance = configure.load(str(path), [])
  # What the preset filled is left to the preset: the overrides may name another one.
  flat = {key: None if where == configure.PRESET else value for key, (value, where) in provenance.items()}
  return configure.resolve(unflatten(flat | dict(overrides or {})))


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model. params: nested dict of arrays in compute.param_dtype, laid out on `mesh`.

  step: updates that it was trained for. compute: settled for this machine.
  """

  model_cfg: ModelConfig
  compute: ComputeConfig
  params: PyTree
  tokenizer: 'Tokenizer'
  config: Config
  step: int
  mesh: jax.sharding.Mesh

  def generate(self, prompts: str | Sequence[str], **sampling: Any) -> 'list[Completion]':
    """A completion per prompt.

    Args:
      sampling: max_new_tokens, temperature, top_k, top_p, min_p, seed, stop; the config's `sample` section
        stands for those not given.

    Raises:
      UserError: an unknown or impossible option, a prompt too long for model.max_seq_len.
    """
    from llamax.generate.decode import generate
    from llamax.generate.sampling import Sampling

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    ids = [self._encode(text, f'prompt {index}') for index, text in enumerate(texts)]
    options = Sampling.from_config(self.config.sample, sampling)
    with jax.set_mesh(self.mesh):
      return generate(self.model_cfg, self.compute, self.params, ids, options, self.tokenizer)

  def stream(self, prompt: str, **sampling: Any) -> 'Generator[str, None, Completion]':
    """As `generate` for one prompt: yields its text as it is drawn, returns the Completion."""
    from llamax.generate.decode import stream
    from llamax.generate.sampling import Sampling

    ids = self._encode(prompt, 'the prompt')
    options = Sampling.from_config(self.config.sample, sampling)
    pieces = stream(self.model_cfg, self.compute, self.params, ids, options, self.tokenizer)
    while True:
      # Set for each piece: what the caller does between two of them is not to see our mesh.
      with jax.set_mesh(self.mesh):
        try:
          piece = next(pieces)
        except StopIteration as end:
          return end.value
      yield piece

  def logits(self, text: str) -> np.ndarray:
    """[T, V] float32 for the T ids of `tokenizer.encode_prompt(text)`: row t scores what follows id t."""
    from llamax.generate.decode import text_logits

    ids = self._encode(text, 'the text')
    with jax.set_mesh(self.mesh):
      return text_logits(self.model_cfg, self.compute, self.params, ids)

  def _encode(self, text: str, what: str) -> list[int]:
    try:
      text.encode()
    except AttributeError:
      raise UserError(f'{what} is {type(text).__name__}; want a string') from None
    except UnicodeEncodeError as error:
      raise UserError(f'{what} is not text: character {error.start} has no UTF-8 form') from None
    return self.tokenizer.encode_prompt(text)


def load(workdir: str | Path, step: int | None = None) -> Loaded:
  """The model of a run, from its checkpoint of `step` (None: the newest that can be read).

  On all devices, laid out by the run's mesh where that fits them; else split over them by fsdp; else on one.

  Raises:
    UserError: no run or no such checkpoint there (the message names what is there), or a damaged one.
  """
  from llamax.checkpoint.reading import restore_params
  from llamax.data.tokenizer import open_tokenizer
  from llamax.model.llama import Llama, init_params, param_dims, settle
  from llamax.parallel.hosts import skip_absent_tpu
  from llamax.parallel.rules import tree_shardings
  from llamax.train.opening import set_compilation_cache

  workdir = Path(workdir).expanduser()
  config = _read_config(workdir, step)
  tokenizer = open_tokenizer(workdir)
  skip_absent_tpu()
  set_compilation_cache(config)
  mesh = _mesh_for(config)
  compute = settle(config.compute, jax.default_backend())
  shapes = jax.eval_shape(lambda: init_params(Llama(config.model, compute), jax.random.key(0)))
  target = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    tree_shardings(shapes, mesh, param_dims(config.model)),
  )
  params, meta = restore_params(workdir / 'checkpoints', target, step)
  trained_with = meta.get('tokenizer_fingerprint')
  if trained_with not in (None, tokenizer.fingerprint):
    raise UserError(
      f'{tokenizer.path} has fingerprint {tokenizer.fingerprint[:12]}; the checkpoint of step {meta["step"]} '
      f'was trained with {trained_with[:12]}: put the tokenizer of the run back there'
    )
  return Loaded(config.model, compute, params, tokenizer, config, meta['step'], mesh)


def _read_config(workdir: Path, step: int | None) -> Config:
  """config.json, but the model as the checkpoint has it; all of the checkpoint's where config.json is lost."""
  from llamax.checkpoint.claim import CONFIG_FILE, read_config
  from llamax.checkpoint.reading import read_meta

  path = workdir / CONFIG_FILE
  try:
    saved = read_meta(workdir / 'checkpoints', step).get('config', {})
  except UserError:  # Whoever restores says what is wrong with it.
    saved = {}
  if not path.exists() and not saved:
    near = [found.parent for folder in (workdir, workdir.parent) for found in folder.glob(f'*/{CONFIG_FILE}')]
    there = f'; runs near it: {", ".join(sorted(map(str, near)))}' if near else ''
    raise UserError(f'{workdir} is not the folder of a run: it has no {CONFIG_FILE}{there}')
  mapping = read_config(workdir) if path.exists() else saved
  try:
    return Config.from_mapping(mapping | {'model': saved.get('model', mapping.get('model'))})
  except UserError as error:
    raise UserError(f'{path if path.exists() else workdir / "checkpoints"}: {error}') from None


def _mesh_for(config: Config) -> jax.sharding.Mesh:
  """A mesh of this machine's devices that the model's dims divide over."""
  from llamax.model.llama import dim_sizes
  from llamax.parallel.mesh import describe, make_mesh, mesh_sizes
  from llamax.parallel.rules import check_fits

  devices = jax.devices()
  refused = None
  for mesh_cfg, count in (
    (config.mesh, len(devices)),
    (MeshConfig(data=1, fsdp=-1, tensor=1), len(devices)),
    (MeshConfig(data=1, fsdp=1, tensor=1), 1),
  ):
    try:
      sizes = mesh_sizes(mesh_cfg, count)
      check_fits(sizes, count, 1, dim_sizes(config.model))
    except UserError as error:
      refused = refused or error
      continue
    mesh = make_mesh(mesh_cfg, devices[:count])
    if refused:
      print(f"not the run's mesh ({refused}); using {describe(mesh)}", file=sys.stderr)
    return mesh
  raise AssertionError('one device fits every model')
