"""Streams that are cut into lines."""

import os

from llamax.launch.lines import Lines, Pump


def test_lines_are_whole_however_they_come():
  taken = []
  lines = Lines(taken.append, 'w', skip=lambda line: line == 'noise')
  for block in (b'a', b'b\nc', b'\nnoise\n\n', 'ü'.encode()[:1], 'ü'.encode()[1:], b'\n\xff\nlast'):
    lines.feed(block)
  assert taken == ['[w] ab\n', '[w] c\n', '[w] \n', '[w] ü\n', '[w] \ufffd\n']
  lines.close()
  assert taken[-1] == '[w] last\n'


def test_a_secret_is_hidden_though_it_comes_in_two_pieces():
  taken = []
  lines = Lines(taken.append, hide=['geheim', 'geheim2', ''])
  for block in (b'x gehe', b'im2 geheim y\n'):
    lines.feed(block)
  assert taken == ['x **** **** y\n']


def test_each_line_of_a_secret_file_is_hidden():
  taken = []
  Lines(taken.append, hide=['{\n "key": "geheim"\n}\n']).feed(b'{\n "key": "geheim"\n}\n')
  assert taken == ['{\n', '****\n', '}\n']


def test_a_pipe_that_another_process_holds_open_is_left_with_all_it_has():
  taken = []
  read, write = os.pipe()
  pump = Pump()
  pump.add(read, Lines(taken.append))
  os.write(write, b'x' * 3000 + b'\nrest')
  assert pump.run(1)
  pump.close()
  os.close(write)
  assert taken == ['x' * 3000 + '\n', 'rest\n']
