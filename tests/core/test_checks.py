"""The rules between fields: each refusal names the keys, with what would work."""

import pytest

from llamax.core.errors import UserError


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'train.num_steps': 0}, 'train.num_steps=0: want at least 1'),
    ({'optim.learning_rate': -1.0}, 'optim.learning_rate=-1.0'),
    ({'optim.b2': 1.0}, 'optim.b2=1.0'),
    ({'model.norm_eps': 0.0}, 'model.norm_eps=0.0: want more than 0'),
    ({'sample.top_p': 1.5}, 'sample.top_p=1.5'),
    ({'model.num_heads': 6, 'model.num_kv_heads': 4}, 'nearest num_kv_heads: 3 or 6'),
    ({'model.head_dim': 7}, 'model.head_dim=7 is odd'),
    ({'model.rope_scaling': 'yam'}, "model.rope_scaling='yam' is not known. Did you mean 'yarn'"),
    ({'optim.schedule': 'cosin'}, "Did you mean 'cosine'"),
    ({'train.batch_tokens': 512}, 'give the global batch once'),
    ({'train.batch_size': None}, 'give the global batch once'),
    ({'train.batch_size': None, 'train.batch_tokens': 100}, 'nearest: 64 or 128'),
    ({'train.grad_accum': 3}, 'nearest grad_accum: 2 or 4, nearest batch: 6 or 9'),
    ({'data.seq_len': 10**6}, 'more than model.max_seq_len'),
    ({'compute.loss_chunks': 5}, 'nearest: 4 or 8'),
    ({'data.weights': (1.0, 2.0)}, 'one weight per source'),
    ({'data.weights': (-1.0,)}, 'none below 0'),
    ({'data.sources': (), 'data.weights': ()}, 'data.sources is empty'),
    ({'eval.splits': ('data/stdlib',)}, 'want NAME=SOURCE:SPLIT'),
    ({'eval.splits': ('a=x:validation', 'a=y:validation')}, 'each name once'),
    ({'mesh.data': -1, 'mesh.fsdp': -1}, 'one may be -1'),
    ({'mesh.tensor': 0}, 'mesh='),
    ({'optim.warmup_steps': 21}, 'more than train.num_steps=20'),
    ({'optim.schedule': 'wsd', 'optim.decay_steps': 19}, 'optim.decay_steps=19 is more than'),
    ({'guard.spike_threshold': 0.0}, 'guard.spike_threshold=0.0: want more than 0, or none'),
    ({'guard.spike_threshold': 6.0, 'guard.spike_rewind': 200}, 'want more than guard.spike_rewind=200'),
  ],
)
def test_refusals(tiny_config, changes, message):
  with pytest.raises(UserError) as error:
    tiny_config(**changes)
  assert message in str(error.value)
