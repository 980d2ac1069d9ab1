"""The gate of each family: the logits of transformers come out of llamax, then out of the way back."""

import warnings

import numpy as np
import pytest

from llamax.cli.main import main
from llamax.convert import formats, forwards

from .families import FAMILIES, their_model

MOST = 1e-5  # of any logit, in float32


@pytest.mark.parametrize('name', FAMILIES)
def test_logits_after_the_conversion(tmp_path, name):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = their_model(name)
  model.save_pretrained(tmp_path / 'hf')
  tokens = np.random.default_rng(1).integers(0, 97, (2, 40), dtype=np.int32)
  ids = torch.from_numpy(tokens.astype(np.int64))
  with torch.no_grad():
    wanted = model(ids).logits.numpy()
  assert wanted.std() > 0.5  # else nothing is compared
  for source, destination, to in (('hf', 'ours', 'llamax'), ('ours', 'back', 'hf')):
    assert main(['convert', str(tmp_path / source), str(tmp_path / destination), f'--to={to}']) == 0
  found = forwards.by_llamax(formats.open_source(tmp_path / 'ours'), tokens)
  assert np.abs(found - wanted).max() <= MOST
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back', attn_implementation='eager')
  with torch.no_grad():
    np.testing.assert_array_equal(again(ids).logits.numpy(), wanted)
