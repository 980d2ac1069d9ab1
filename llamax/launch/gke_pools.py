"""The gcloud commands that make the node pools of a job's slices, that give them back."""

import argparse

from llamax.core.errors import UserError
from llamax.launch.action import Run
from llamax.launch.tpus import Slice

# What gcloud says of what is there already, is gone already. A cluster that is not found is no such thing: the
# pool may be in the right one.
_POOL_IS_THERE = r'(?i)already exists: \S*/nodePools/'
_POOL_IS_GONE = r'(?i)not found: (\S*/nodePools/|node pool)|node pool \S+ not found'
_POLICY_IS_THERE = r"/resourcePolicies/\S+' already exists"
_POLICY_IS_GONE = r"/resourcePolicies/\S+' was not found"


def create(args: argparse.Namespace, name: str, slice_: Slice) -> list[Run]:
  """A node pool for each slice, which Autopilot clusters make by themselves."""
  made: list[Run] = []
  where, zone = _where(args), _zone(args)
  policy: tuple[str, ...] = ()
  several = (f'--tpu-topology={slice_.topology}',) if slice_.hosts > 1 else ()
  if slice_.generation == 'tpu7x' and slice_.hosts > 1:
    # Before v7 the pool itself says how its machines are joined.
    kind = ('--type=HIGH_THROUGHPUT', f'--accelerator-topology={slice_.topology}', *_region(args))
    joined = ('gcloud', 'compute', 'resource-policies', 'create', 'workload-policy', name)
    made.append(Run((*joined, *kind), 'how the machines of a slice are joined', forgiven=_POLICY_IS_THERE))
    policy = (f'--placement-policy={name}',)
  tier: tuple[str, ...] = ('--spot',) if args.spot else ()
  if args.reservation:
    tier += ('--reservation-affinity=specific', f'--reservation={args.reservation}')
  shape = (f'--machine-type={slice_.machine}', *several, f'--num-nodes={slice_.hosts}')
  for number in range(args.slices):
    words = ('gcloud', 'container', 'node-pools', 'create', f'{name}-{number}', *where)
    why = f'nodes of slice {number}: {slice_.hosts} with {slice_.per_host} chips each'
    made.append(Run((*words, *shape, *policy, *tier, f'--node-locations={zone}'), why, forgiven=_POOL_IS_THERE))
  return made


def delete(args: argparse.Namespace, name: str, slice_: Slice | None) -> list[Run]:
  """What `create` made. slice_: where it is known; else a policy, which costs nothing, stays."""
  gone: list[Run] = []
  for number in range(args.slices):
    words = ('gcloud', 'container', 'node-pools', 'delete', f'{name}-{number}', *_where(args), '--quiet')
    why = f'gives back the node pool {name}-{number}, the machines of slice {number}'
    gone.append(Run(words, why, forgiven=_POOL_IS_GONE))
  if slice_ is not None and slice_.generation == 'tpu7x':
    joined = ('gcloud', 'compute', 'resource-policies', 'delete', name, *_region(args), '--quiet')
    gone.append(Run(joined, 'how its machines were joined', forgiven=_POLICY_IS_GONE))
  return gone


def _where(args: argparse.Namespace) -> tuple[str, ...]:
  if not args.location:
    raise UserError(f'--cluster={args.cluster}: where is it? Give --location=REGION')
  return (f'--cluster={args.cluster}', f'--location={args.location}', *_project(args))


def _zone(args: argparse.Namespace) -> str:
  """The one of the nodes: gcloud counts --num-nodes for each zone of a pool."""
  if args.node_zone or args.location.count('-') != 1:  # 'us-central1-a', 'us-central1-ai1a' are zones.
    return args.node_zone or args.location
  raise UserError(
    f'--location={args.location} is a region, with several zones; the machines of a slice are in one: '
    f'say in which, such as --node_zone={args.location}-b'
  )


def _region(args: argparse.Namespace) -> tuple[str, ...]:
  """'us-central1-a' is a zone of us-central1."""
  return (f'--region={"-".join(args.location.split("-")[:2])}', *_project(args))


def _project(args: argparse.Namespace) -> tuple[str, ...]:
  return (f'--project={args.project}',) if args.project else ()
