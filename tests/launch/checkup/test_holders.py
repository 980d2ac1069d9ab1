"""Who holds the accelerator is named, by the links of /proc and for real."""

import os

from llamax.launch.checkup.finding import FAIL, OK, WARN
from llamax.launch.checkup.hardware import Hardware
from llamax.launch.checkup.holders import LOCKFILE, examine, holders
from llamax.launch.checkup.tree import Tree

TPU = Hardware('tpu', 2, 'v5e', ('/dev/accel0', '/dev/accel1'))
HELD = {
  '/proc/12/fd/3': ('link', '/dev/accel1'),
  '/proc/12/fd/4': ('link', '/dev/null'),
  '/proc/12/cmdline': 'python3\0train.py\0--note=a b\0',
  '/proc/12/status': 'Name:\tpython3\nUid:\t0\t0\t0\t0\n',
  '/proc/13/fd/1': ('link', '/dev/null'),
  '/proc/13/cmdline': 'sleep\x0012\0',
  '/proc/self/fd/1': ('link', '/dev/accel1'),
}


def test_names_process_user_command(tree):
  (finding,) = examine(tree(HELD), TPU)
  assert finding.verdict == FAIL
  assert finding.text == "process 12 of root (python3 train.py '--note=a b') holds /dev/accel1"
  assert 'kill 12' in finding.todo


def test_a_gpu_may_be_shared(tree):
  (finding,) = examine(tree(HELD), Hardware('gpu', 1, '', ('/dev/accel1',)))
  assert finding.verdict == WARN and '75 %' in finding.text


def test_a_lockfile_that_nobody_holds(tree):
  first, second = examine(tree({LOCKFILE: ''}), TPU)
  assert first.verdict == OK and second.verdict == WARN and f'sudo rm {LOCKFILE}' in second.todo
  assert len(examine(tree({LOCKFILE: '', **HELD}), TPU)) == 1


def test_a_command_cannot_write_lines_of_its_own(tree):
  files = {**HELD, '/proc/12/cmdline': 'x\nok  all is well\x1b[2J\0'}
  assert '\n' not in examine(tree(files), TPU)[0].text and '\x1b' not in examine(tree(files), TPU)[0].text


def test_nothing_to_hold(tree):
  assert examine(tree(HELD), Hardware(None, 0, '', ())) == []


def test_a_real_process(tmp_path):
  node = tmp_path / 'accel0'
  node.write_text('')
  with open(node):
    found, _ = holders(Tree(), [str(node)])
  assert [holder.pid for holder in found] == [os.getpid()] and found[0].nodes == (str(node),)
  assert holders(Tree(), [str(node)])[0] == []
