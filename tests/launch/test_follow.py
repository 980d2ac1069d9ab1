"""Logs of several workers as one stream, over connections that break."""

import pytest

from llamax.launch import follow
from llamax.launch.action import Run
from llamax.launch.follow import Follower

# Reads a log from a byte on, breaks off now and then as ssh does, until the log has been read to its end.
READER = """
tail -c +$(($2 + 1)) "$1" | head -c 7
[ "$(($2 + 7))" -lt "$(wc -c < "$1")" ] && exit 255
exit 0
"""


def command(script, *words, label='w'):
  return lambda offset: Run(('sh', '-c', script, 'sh', *map(str, words), str(offset)), 'its log', label=label)


@pytest.fixture
def follower(monkeypatch):
  monkeypatch.setattr(follow, '_SHORTEST', 0.01)
  made = Follower(patience=2.0)
  yield made
  made.close()


def test_each_line_comes_once_though_every_connection_breaks(follower, tmp_path, capfd):
  lines = [f'line {number}' for number in range(12)]
  for name in 'ab':
    (tmp_path / name).write_text(''.join(f'{name} {line}\n' for line in lines))
    follower.add(ord(name), command(READER, tmp_path / name, label=name))
  assert {follower.wait() for _ in 'ab'} == {(ord('a'), ''), (ord('b'), '')}
  shown = capfd.readouterr().out.splitlines()
  for name in 'ab':
    assert [line for line in shown if line.startswith(f'[{name}]')] == [
      f'[{name}] {name} {line}' for line in lines
    ]


def test_a_worker_out_of_reach_is_given_up_with_what_was_said(follower):
  follower.add(0, command('echo no route >&2; exit 255'))
  assert follower.wait() == (0, 'no route')


def test_what_fails_on_the_worker_is_not_tried_again(follower, tmp_path):
  follower.add(3, command(f'echo x >> {tmp_path}/tries; exit 2'))
  assert follower.wait() == (3, 'exit code 2')
  assert (tmp_path / 'tries').read_text() == 'x\n'


def test_a_worker_that_says_nothing_may_lose_its_connection(follower, monkeypatch, tmp_path, capfd):
  """As all but process 0, which are silent for hours."""
  monkeypatch.setattr(follow, '_STANDS', 0.5, raising=False)
  follower._patience = 0.6
  follower.add(1, command('mkdir "$1" && sleep 1 && exit 255; echo done', tmp_path / 'once'))
  assert follower.wait() == (1, '')
  assert capfd.readouterr().out == '[w] done\n'


def test_a_log_goes_on_where_it_was_left_until_its_worker_starts_anew(follower, tmp_path, capfd):
  (tmp_path / 'log').write_text('one\ntwo\nthree\n')
  reads = command('tail -c +$(($2 + 1)) "$1" | head -c 6; exit 255', tmp_path / 'log')
  follower._patience = -1.0  # It is given up at once.
  for _ in range(3):
    follower.add(0, reads)
    follower.wait()
  assert capfd.readouterr().out == '[w] one\n[w] two\n[w] three\n'
  (tmp_path / 'log').write_text('anew')
  follower.add(0, reads, 'another start')
  follower.wait()
  follower.close()
  assert capfd.readouterr().out == '[w] anew\n'
