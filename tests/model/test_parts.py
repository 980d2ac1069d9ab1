"""Parts are found by their names, variants by their files."""

import dataclasses
import sys

import pytest

from llamax.core.errors import UserError
from llamax.model import parts, variants
from llamax.model.attention import GroupedQueryAttention
from llamax.model.layers import LayerNorm, RMSNorm
from llamax.model.mlp import SwiGlu
from llamax.model.rope import NoPosition, Rope


@pytest.mark.parametrize(
  'kind, name, part',
  [
    ('attention', 'gqa', GroupedQueryAttention),
    ('mlp', 'swiglu', SwiGlu),
    ('norm', 'rmsnorm', RMSNorm),
    ('norm', 'layernorm', LayerNorm),
    ('position', 'rope', Rope),
    ('position', 'none', NoPosition),
  ],
)
def test_built_in_parts(tiny_config, kind, name, part):
  assert parts.find_part(dataclasses.replace(tiny_config().model, **{kind: name}), kind) is part


def test_a_file_among_the_variants_is_a_part(tiny_config, tmp_path, monkeypatch):
  (tmp_path / 'drawn.py').write_text("PARTS = {'mlp': str, 'norm': int}\n")
  monkeypatch.setattr(variants, '__path__', [str(tmp_path)])
  monkeypatch.delitem(sys.modules, 'llamax.model.variants.drawn', raising=False)
  cfg = dataclasses.replace(tiny_config().model, mlp='drawn', norm='drawn', attention='drawn')
  assert parts.find_part(cfg, 'mlp') is str
  assert parts.find_part(cfg, 'norm') is int
  assert parts.known_parts('mlp') == ['drawn', 'swiglu']
  assert parts.known_parts('position') == ['none', 'rope']
  # Its PARTS has no attention.
  with pytest.raises(UserError, match=r"model.attention='drawn'"):
    parts.find_part(cfg, 'attention')


@pytest.mark.parametrize('name', ['swigloo', '', 'os', 'relu2.x', '../relu2', 'Relu2', '__init__', 'a b'])
def test_an_unknown_name_is_a_user_error(tiny_config, name):
  with pytest.raises(UserError, match=r'model.mlp='):
    parts.find_part(dataclasses.replace(tiny_config().model, mlp=name), 'mlp')


def test_the_nearest_name_is_told(tiny_config):
  with pytest.raises(UserError, match="Did you mean 'swiglu'"):
    parts.find_part(dataclasses.replace(tiny_config().model, mlp='swigloo'), 'mlp')
