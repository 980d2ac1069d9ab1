"""What a run opens before its first step."""

import jax
import pytest

from llamax.train.opening import set_compilation_cache


@pytest.mark.parametrize(
  ('processes', 'platform', 'kept'), [(1, 'cpu', True), (2, 'cpu', False), (2, 'tpu', True)]
)
def test_programs_are_kept_unless_some_processes_alone_would_have_them(
  tiny_config, tmp_path, monkeypatch, processes, platform, kept
):
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  before = jax.config.jax_compilation_cache_dir
  try:
    set_compilation_cache(tiny_config(**{'compute.compilation_cache': str(tmp_path / 'cache')}))
    assert (jax.config.jax_compilation_cache_dir == str(tmp_path / 'cache')) == kept
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
