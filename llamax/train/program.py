"""From a config with devices to the jitted train step: what the trainer runs is what the planner compiles."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from llamax.core.config import Config
from llamax.core.types import Batch
from llamax.kernels.attention import check_backend
from llamax.model.llama import Llama, dim_sizes, param_dims, settle
from llamax.model.mup import lr_factors
from llamax.optim.optimizer import make_optimizer
from llamax.optim.schedule import make_schedule
from llamax.parallel.mesh import make_mesh
from llamax.parallel.rules import batch_sharding, check_fits, param_spec
from llamax.train.state import TrainState, abstract_state
from llamax.train.step import eval_step, train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """A train step with all that it is made from. Trace, run both steps under `jax.set_mesh(program.mesh)`.

  cfg: the config with `compute` settled for the platform. model: dropout as in training.
  state, batch: shapes, dtypes, shardings; nothing is allocated.
  step: (state, batch) -> (state, metrics); the state given to it is donated.
  eval_step: (params, batch) -> {'nll', 'tokens'}, without dropout.
  """

  cfg: Config
  mesh: jax.sharding.Mesh
  model: Llama
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  state: TrainState
  batch: Batch
  step: jax.stages.Wrapped
  eval_step: jax.stages.Wrapped


def make_program(cfg: Config, devices: Sequence[jax.Device]) -> Program:
  """Builds the steps for `devices`, which may be those of a topology description.

  Raises:
    UserError: the mesh does not fit the devices, the batch or the model does not divide over it, or the
      attention backend cannot serve these shapes on this platform.
  """
  compute = settle(cfg.compute, platform_of(devices))
  cfg = dataclasses.replace(cfg, compute=compute)
  mesh = make_mesh(cfg.mesh, devices)
  check_fits(dict(mesh.shape), cfg.batch_size, cfg.train.grad_accum, dim_sizes(cfg.model), cfg.eval.batch_size)
  check_backend(
    compute.attention,
    platform=platform_of(devices),
    dtype=compute.compute_dtype,
    seq_len=cfg.data.seq_len,
    head_dim=cfg.model.head_dim,
    splash_block=compute.splash_block,
  )
  model = Llama(cfg.model, compute, dropout_on=cfg.model.dropout > 0)
  schedule = make_schedule(cfg.optim, cfg.train.num_steps)
  tx = make_optimizer(cfg.optim, schedule, lr_factors(cfg.model, param_dims(cfg.model)))
  state = abstract_state(model, tx, mesh)
  state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  everywhere = NamedSharding(mesh, param_spec(''))
  step = functools.partial(
    train_step,
    model=model,
    tx=tx,
    z_loss=cfg.train.z_loss,
    grad_accum=cfg.train.grad_accum,
    seed=cfg.train.seed,
  )
  return Program(
    cfg=cfg,
    mesh=mesh,
    model=model,
    tx=tx,
    schedule=schedule,
    state=state,
    batch=abstract_batch(cfg, mesh),
    step=jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, everywhere)),
    eval_step=jax.jit(
      functools.partial(eval_step, model=model.clone(dropout_on=False)), out_shardings=everywhere
    ),
  )


def platform_of(devices: Sequence[jax.Device]) -> str:
  """'cpu', 'gpu' or 'tpu'."""
  name = devices[0].platform
  return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)


def abstract_batch(cfg: Config, mesh: jax.sharding.Mesh) -> Batch:
  """Shapes of the global batch of one step, split over the batch axes."""
  shape = (cfg.batch_size, cfg.data.seq_len)
  rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
  return {name: rows for name in Batch.__annotations__}  # type: ignore
