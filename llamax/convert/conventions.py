"""How each format writes a LLaMA, as the reference forward reads it.

Written from the formats' own documents, apart from the tables that the copy works by: a mistake in one of the
two makes them disagree.
"""

import dataclasses

from llamax.convert.reference import Convention
from llamax.core.errors import pick

_HF = Convention(
  names={
    'embed': 'model.embed_tokens.weight',
    'attn_norm': 'model.layers.*.input_layernorm.weight',
    'wq': 'model.layers.*.self_attn.q_proj.weight',
    'wk': 'model.layers.*.self_attn.k_proj.weight',
    'wv': 'model.layers.*.self_attn.v_proj.weight',
    'wo': 'model.layers.*.self_attn.o_proj.weight',
    'bq': 'model.layers.*.self_attn.q_proj.bias',
    'bk': 'model.layers.*.self_attn.k_proj.bias',
    'bv': 'model.layers.*.self_attn.v_proj.bias',
    'bo': 'model.layers.*.self_attn.o_proj.bias',
    'q_norm': 'model.layers.*.self_attn.q_norm.weight',
    'k_norm': 'model.layers.*.self_attn.k_norm.weight',
    'mlp_norm': 'model.layers.*.post_attention_layernorm.weight',
    'w_gate': 'model.layers.*.mlp.gate_proj.weight',
    'w_up': 'model.layers.*.mlp.up_proj.weight',
    'w_down': 'model.layers.*.mlp.down_proj.weight',
    'b_gate': 'model.layers.*.mlp.gate_proj.bias',
    'b_up': 'model.layers.*.mlp.up_proj.bias',
    'b_down': 'model.layers.*.mlp.down_proj.bias',
    'final_norm': 'model.norm.weight',
    'head': 'lm_head.weight',
  },
  out_first=True,
  interleaved=False,
)
_META = Convention(
  names={
    'embed': 'tok_embeddings.weight',
    'attn_norm': 'layers.*.attention_norm.weight',
    'wq': 'layers.*.attention.wq.weight',
    'wk': 'layers.*.attention.wk.weight',
    'wv': 'layers.*.attention.wv.weight',
    'wo': 'layers.*.attention.wo.weight',
    'mlp_norm': 'layers.*.ffn_norm.weight',
    'w_gate': 'layers.*.feed_forward.w1.weight',
    'w_up': 'layers.*.feed_forward.w3.weight',
    'w_down': 'layers.*.feed_forward.w2.weight',
    'final_norm': 'norm.weight',
    'head': 'output.weight',
  },
  out_first=True,
  interleaved=True,
)
_EASYLM = Convention(
  names={
    'embed': 'transformer/wte/embedding',
    'attn_norm': 'transformer/h/*/attention_norm/kernel',
    'wq': 'transformer/h/*/attention/wq/kernel',
    'wk': 'transformer/h/*/attention/wk/kernel',
    'wv': 'transformer/h/*/attention/wv/kernel',
    'wo': 'transformer/h/*/attention/wo/kernel',
    'mlp_norm': 'transformer/h/*/ffn_norm/kernel',
    'w_gate': 'transformer/h/*/feed_forward/w1/kernel',
    'w_up': 'transformer/h/*/feed_forward/w3/kernel',
    'w_down': 'transformer/h/*/feed_forward/w2/kernel',
    'final_norm': 'transformer/ln_f/kernel',
    'head': 'lm_head/kernel',
  },
  out_first=False,
  interleaved=True,
)
_LLAMAX = Convention(
  names={
    'embed': 'embed/table',
    'attn_norm': 'layers/*/attn_norm/scale',
    **{name: f'layers/*/attn/{name}' for name in ('wq', 'wk', 'wv', 'wo', 'bq', 'bk', 'bv', 'bo')},
    'q_norm': 'layers/*/attn/q_norm/scale',
    'k_norm': 'layers/*/attn/k_norm/scale',
    'mlp_norm': 'layers/*/mlp_norm/scale',
    **{name: f'layers/*/mlp/{name}' for name in ('w_gate', 'w_up', 'w_down', 'b_gate', 'b_up', 'b_down')},
    'final_norm': 'final_norm/scale',
    'head': 'lm_head/kernel',
  },
  out_first=False,
  interleaved=False,
)
_GGUF = Convention(
  names={
    'embed': 'token_embd.weight',
    'attn_norm': 'blk.*.attn_norm.weight',
    **{
      part: f'blk.*.attn_{name}.weight'
      for part, name in (('wq', 'q'), ('wk', 'k'), ('wv', 'v'), ('wo', 'output'))
    },
    **{
      part: f'blk.*.attn_{name}.bias'
      for part, name in (('bq', 'q'), ('bk', 'k'), ('bv', 'v'), ('bo', 'output'))
    },
    'q_norm': 'blk.*.attn_q_norm.weight',
    'k_norm': 'blk.*.attn_k_norm.weight',
    'mlp_norm': 'blk.*.ffn_norm.weight',
    **{f'w_{part}': f'blk.*.ffn_{part}.weight' for part in ('gate', 'up', 'down')},
    **{f'b_{part}': f'blk.*.ffn_{part}.bias' for part in ('gate', 'up', 'down')},
    'final_norm': 'output_norm.weight',
    'head': 'output.weight',
  },
  out_first=True,
  interleaved=True,
)
# llama.cpp turns the pairs of Qwen as Hugging Face does (its "neox" rotation), those of LLaMA as Meta.
_GGUF_HALVES = dataclasses.replace(_GGUF, interleaved=False)

# (format, family); a family that a format treats as any other is left out.
_CONVENTIONS = {
  'hf': _HF,
  'meta': _META,
  'easylm': _EASYLM,
  'llama2c': _META,
  'llamax': _LLAMAX,
  'gguf': _GGUF,
  'gguf qwen2': _GGUF_HALVES,
  'gguf qwen3': _GGUF_HALVES,
}


def convention(format_name: str, family: str) -> Convention:
  """Raises UserError: the reference does not know the format."""
  special = f'{format_name} {family}'
  return _CONVENTIONS[special] if special in _CONVENTIONS else pick(_CONVENTIONS, format_name, 'format')
