"""Which accelerators this machine has, whoever may use them, whatever jax makes of them."""

from dataclasses import dataclass

from llamax.launch.checkup.tree import Tree

_GOOGLE, _NVIDIA = '0x1ae0', '0x10de'
# PCI device of Google -> chip, as jax/_src/hardware_utils.py has them; its network cards have the same vendor.
_TPU_CHIPS = {
  '0x0027': 'v2 or v3',
  '0x0056': 'plc',
  '0x005e': 'v4',
  '0x0062': 'v5p',
  '0x0063': 'v5e',
  '0x006f': 'v6e',
  '0x0076': 'tpu7x',
}
_DISPLAY = '0x03'  # PCI class; NVIDIA's sound, switches have others


@dataclass(frozen=True)
class Hardware:
  """kind: 'tpu', 'gpu' or None. chips: how many the PCI bus shows, 0 where it is hidden (a container).

  name: the generation of a TPU, '' where it is not told. nodes: device files through which a process uses them.
  """

  kind: str | None
  chips: int
  name: str
  nodes: tuple[str, ...]

  def __str__(self) -> str:
    if self.kind is None:
      return 'no TPU, no GPU'
    what = {'tpu': 'TPU', 'gpu': 'NVIDIA GPU'}[self.kind] + (f' {self.name}' if self.name else '')
    count = self.chips or len(self.nodes)
    return f'{count} {what}{"s" * (count != 1 and not self.name)}' + (f' ({", ".join(self.nodes)})')


def hardware(tree: Tree) -> Hardware:
  tpus, gpus = [], 0
  for name in tree.names('/sys/bus/pci/devices'):
    folder = f'/sys/bus/pci/devices/{name}'
    vendor, device = tree.read(f'{folder}/vendor'), tree.read(f'{folder}/device')
    if vendor == _GOOGLE and device in _TPU_CHIPS:
      tpus.append(_TPU_CHIPS[device])
    gpus += vendor == _NVIDIA and (tree.read(f'{folder}/class') or '').startswith(_DISPLAY)
  tpu_nodes = _nodes(tree, '/dev', 'accel[0-9]*') + _nodes(tree, '/dev/accel', 'accel[0-9]*')
  gpu_nodes = _nodes(tree, '/dev', 'nvidia[0-9]*')
  # VFIO hands any PCI device to a program: what it is the bus has to say, where there is another candidate.
  vfio = _nodes(tree, '/dev/vfio', '[0-9]*')
  if tpus or (vfio and not gpus):
    tpu_nodes = tpu_nodes + vfio
  if tpus or tpu_nodes:
    return Hardware('tpu', len(tpus), ', '.join(sorted(set(tpus))), tuple(tpu_nodes))
  if gpus or gpu_nodes or tree.exists('/dev/nvidiactl') or tree.exists('/dev/dxg'):
    return Hardware('gpu', gpus, '', tuple(gpu_nodes))
  return Hardware(None, 0, '', ())


def _nodes(tree: Tree, folder: str, pattern: str) -> list[str]:
  return [f'{folder}/{name}' for name in tree.names(folder, pattern)]
