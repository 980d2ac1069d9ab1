"""Mappings to typed configs: what is accepted, what is refused, in which words."""

import pytest

from llamax.core.config import Config, fields_of, flatten, later_fields, parse_text, unflatten
from llamax.core.errors import UserError


def test_mapping_round_trip(tiny_config):
  cfg = tiny_config()
  assert Config.from_mapping(cfg.to_mapping()) == cfg
  assert unflatten(flatten(cfg.to_mapping())) == cfg.to_mapping()


@pytest.mark.parametrize('key', sorted(set(fields_of()) - set(later_fields())))
def test_a_missing_key_is_named(tiny_config, key):
  flat = flatten(tiny_config().to_mapping())
  del flat[key]
  with pytest.raises(UserError, match=f"lacks '{key}'"):
    Config.from_mapping(unflatten(flat))


def test_a_config_from_before_a_key_was_there_means_its_default(tiny_config):
  assert later_fields() == {'model.mup_base_width': None}
  flat = flatten(tiny_config().to_mapping())
  assert (
    Config.from_mapping(unflatten({k: v for k, v in flat.items() if k not in later_fields()})) == tiny_config()
  )


def test_an_unknown_key_points_to_the_nearest(tiny_config):
  mapping = tiny_config().to_mapping()
  mapping['optim']['learning_rat'] = 1.0
  with pytest.raises(UserError, match=r"no key 'optim.learning_rat'. Did you mean 'optim.learning_rate'"):
    Config.from_mapping(mapping)


def test_the_same_word_in_another_section_is_found():
  with pytest.raises(UserError, match=r"Did you mean 'model.rope_theta'\?"):
    parse_text('rope_theta', '1e4')


@pytest.mark.parametrize(
  ('key', 'text', 'value'),
  [
    ('train.num_steps', '1e6', 1_000_000),
    ('train.num_steps', '12', 12),
    ('optim.learning_rate', '3e-4', 3e-4),
    ('optim.learning_rate', '1', 1.0),
    ('optim.clip_norm', 'none', None),
    ('optim.clip_norm', 'None', None),
    ('model.d_model', 'none', None),
    ('compute.scan_layers', 'false', False),
    ('data.sources', 'a,b/c', ('a', 'b/c')),
    ('data.weights', '(0.5, 2)', (0.5, 2.0)),
    ('model.preset', 'llama3_8b', 'llama3_8b'),
    ('model.rope_scaling', 'none', 'none'),
    ('train.batch_size', 'none', None),
  ],
)
def test_text_is_read_by_the_type_of_its_field(key, text, value):
  parsed = parse_text(key, text)
  assert parsed == value
  assert type(parsed) is type(value)


@pytest.mark.parametrize(
  ('key', 'text'),
  [
    ('train.num_steps', '1.5'),
    ('train.num_steps', 'many'),
    ('train.num_steps', 'none'),
    ('optim.learning_rate', 'nan'),
    ('optim.learning_rate', 'inf'),
    ('optim.learning_rate', 'none'),
    ('compute.scan_layers', 'maybe'),
    ('data.weights', 'a,b'),
  ],
)
def test_text_of_another_type_is_refused_by_key(key, text):
  with pytest.raises(UserError, match=key):
    parse_text(key, text)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('optim.learning_rate', '3e-4'),
    ('train.num_steps', True),
    ('compute.scan_layers', 1),
    ('data.sources', 'data/stdlib'),
    ('model.preset', None),
    ('optim', 3),
  ],
)
def test_values_of_another_type_are_refused_by_key(tiny_config, key, value):
  with pytest.raises(UserError, match=key):
    Config.from_mapping(unflatten(flatten(tiny_config().to_mapping()) | {key: value}))


def test_batch_size_from_tokens(tiny_config):
  cfg = tiny_config(**{'train.batch_size': None, 'train.batch_tokens': 640, 'data.seq_len': 64})
  assert cfg.batch_size == 10
