"""SIGTERM before the first step: code 75, whatever it met."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.train import early as module
from llamax.train.early import Early, sigterm_ends
from llamax.train.stopping import signals


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.01)


def test_it_unwinds_with_code_75():
  ended = []
  with pytest.raises(exits.Stop, match='before the first step') as end, ExitStack() as stack:
    stack.callback(lambda: ended.append(signal.getsignal(signal.SIGTERM)))
    with sigterm_ends(stack):
      with suppress(Exception):  # Of something that is foreseen.
        terminate()
      ended.append('not heard')
  assert end.value.code == exits.RESUME and ended == [signal.SIG_DFL]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1


def test_more_of_it_does_not_disturb_what_must_be_done():
  done = []
  with pytest.raises(exits.Stop), ExitStack() as stack, sigterm_ends(stack), ExitStack() as inner:
    inner.callback(lambda: (terminate(), done.append('released')))
    with sigterm_ends(inner):
      terminate()
  assert done == ['released']


def test_an_error_that_was_made_of_it_is_none():
  with pytest.raises(exits.Stop), ExitStack() as stack, sigterm_ends(stack):
    try:
      terminate()
    except BaseException:
      raise SystemError('a result with an exception set') from None


@pytest.mark.parametrize('error', [UserError('x'), RuntimeError('x'), KeyboardInterrupt()])
def test_other_errors_are_themselves(error):
  with pytest.raises(type(error)), ExitStack() as stack, sigterm_ends(stack):
    raise error
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_training_takes_over_for_good():
  noted = []
  with ExitStack() as stack, sigterm_ends(stack), sigterm_ends(stack):
    with signals(noted.append, lambda text: None):
      assert signal.set_wakeup_fd(-1) == -1
      terminate()
    assert noted == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_got_lost_is_noted_when_the_training_takes_over():
  noted = []
  with ExitStack() as stack, sigterm_ends(stack):
    with suppress(BaseException):  # As in __del__.
      terminate()
    with signals(noted.append, lambda text: None):
      assert noted == [signal.SIGTERM]


def test_a_handler_of_the_caller_comes_back():
  heard = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
  try:
    with ExitStack() as stack, sigterm_ends(stack) as early:
      assert isinstance(early, Early) and signal.set_wakeup_fd(-1) == -1  # never ends a process of others
    terminate()
  finally:
    signal.signal(signal.SIGTERM, before)
  assert heard == [signal.SIGTERM]


def test_other_threads_take_no_signals():
  found = []

  def act():
    with ExitStack() as stack, sigterm_ends(stack) as early:
      found.append(early)

  thread = threading.Thread(target=act)
  thread.start()
  thread.join()
  assert found == [None]


PROGRAM = """
import ctypes, os, signal
from contextlib import ExitStack
from llamax.train import early
early.PATIENCE = 0.3
with ExitStack() as stack, early.sigterm_ends(stack, at_once=AT_ONCE) as e:
  e.at_end.append(lambda: print('released', flush=True))
  print('ready', flush=True)
  libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
  libc.pthread_mutex_lock(mutex)
  libc.pthread_mutex_lock(mutex) if IN_C else os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
  ('at_once', 'in_c', 'acted'), [(False, True, 'released\n'), (True, True, 'released\n'), (True, False, '')]
)
def test_a_call_of_c_does_not_hold_it_up_nor_does_an_import(at_once, in_c, acted):
  assert module.PATIENCE < 10  # less than the time between SIGTERM and SIGKILL
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM.replace('AT_ONCE', str(at_once)).replace('IN_C', str(in_c))],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  if in_c:  # In a wait that no signal ends.
    time.sleep(0.1)
    process.terminate()
  out, err = process.communicate(timeout=20)
  assert (process.returncode, out) == (exits.RESUME, acted)
  assert err.startswith('llamax: SIGTERM before the first step') and err.count('\n') == 1


def test_a_run_takes_back_that_nothing_is_held():
  with pytest.raises(exits.Stop), ExitStack() as stack, sigterm_ends(stack, at_once=True), sigterm_ends(stack):
    terminate()
