"""llamax/sweep/page.py: one page that needs no network, whatever a run is called."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from llamax.sweep.compare import compare
from llamax.sweep.figures import png
from llamax.sweep.gather import gather
from llamax.sweep.page import page
from llamax.sweep.report import best_command, write_sweep_report
from tests.sweep.made_runs import base_config, make_plan, make_run

HOSTILE = '</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def base():
  return base_config()


class Tags(html.parser.HTMLParser):
  """All tags with their attributes, the text of each script."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self.cells = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] == 'script':
      self.scripts.append(data)
    if self.tags and self.tags[-1][0] == 'td':
      self.cells.append(data)


@pytest.fixture(scope='module')
def hostile(base, tmp_path_factory):
  root = tmp_path_factory.mktemp('page')
  make_run(root / 'a<script>alert(1)<', base, {'optim.learning_rate': 1e-3, 'data.tokenizer': HOSTILE})
  make_run(
    root / '"q\' & $x$ \x1b[31m', base, {'optim.learning_rate': 2e-3, 'data.tokenizer': 'nul\0byte'}, floor=2
  )
  make_run(root / ('x' * 200), base, {'optim.learning_rate': 3e-3})
  return compare(gather([str(root)]))


def test_what_a_run_is_called_stays_text(hostile):
  text = page(hostile, HOSTILE, ['--config=x.py', f'--workdir={HOSTILE}'])
  found = Tags(text)
  assert [tag for tag, _ in found.tags if tag in ('img', 'iframe', 'object', 'embed')] == []
  assert len([tag for tag, _ in found.tags if tag == 'script']) == 2
  assert 'a<script>alert(1)<' in found.cells and HOSTILE in found.cells
  assert not re.search('[\0-\x08\x0b-\x1f\x7f\u202e]', text)
  assert not set('<>&') & set(found.scripts[0])
  data = json.loads(found.scripts[0])
  assert {run['name'] for run in data['runs']} == {r.name.replace('\x1b', '�') for r in hostile.records}


def test_nothing_is_fetched(hostile):
  text = page(hostile, 'Runs', None)
  found = Tags(text)
  for tag, attributes in found.tags:
    for name in ('src', 'href', 'action', 'data'):
      assert attributes.get(name, 'data:,').startswith('data:'), (tag, attributes)
  policy = next(a['content'] for _, a in found.tags if a.get('http-equiv') == 'Content-Security-Policy')
  assert policy.startswith("default-src 'none';")
  assert not re.search(r'url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(', text)
  # An address that is no request: the name of SVG.
  assert set(re.findall(r'https?://[^\'" ]*', text)) == {'http://www.w3.org/2000/svg'}


def test_numbers_stand_to_the_right_with_what_they_sort_by(hostile):
  text = page(hostile, 'Runs', None)
  row = text[text.index('<tr class="best">') :].split('</tr>')[0]
  assert re.search(r'<td class="number" data-v="0.002">0.002</td>', row)
  assert re.search(r'<td class="number" data-v="1024000.0">1.02M</td>', row)
  assert '<td data-v="finished">finished</td>' in row
  assert 'aria-sort="ascending"><button type="button">eval/loss</button>' in text


@pytest.mark.parametrize('name', ['page.js'])
def test_the_script_is_javascript(name):
  node = shutil.which('node')
  if node is None:
    pytest.skip('no node here')
  from llamax.sweep import page as module

  path = module.__file__.replace('page.py', name)
  assert subprocess.run([node, '--check', path], check=False).returncode == 0


def test_a_page_without_a_number_or_with_one_run(base, tmp_path):
  make_run(tmp_path / 'one', base, done=0, ended=False, evals=0)
  (tmp_path / 'one/metrics.jsonl').unlink()
  found = compare(gather([str(tmp_path / 'one')]))
  assert 'No run has a finite loss yet.' in page(found, 'Run', None)
  assert png(found).startswith(b'\x89PNG')


def test_pictures_draw_what_they_are_given(hostile):
  assert png(hostile).startswith(b'\x89PNG')


def test_the_report_of_a_sweep_is_written_whole(base, tmp_path):
  points = {'slow': {'optim.learning_rate': 1e-3}, 'fast one': {'optim.learning_rate': 4e-3}}
  make_plan(tmp_path, base, points, overrides=[['train.seed', '3']])
  make_run(tmp_path / 'runs/slow', base, points['slow'])
  make_run(tmp_path / 'runs/fast one', base, points['fast one'], floor=2.0)
  lines = write_sweep_report(tmp_path)
  assert [line.split(': ')[0] for line in lines] == ['table', 'picture', 'page']
  files = {path.name for path in tmp_path.iterdir()}
  assert files == {'runs', 'sweep.json', 'report.csv', 'report.png', 'report.html'}  # nothing half-written
  text = (tmp_path / 'report.html').read_text()
  assert '<b>fast one</b>' in text
  found = compare(gather([str(tmp_path)]))
  assert best_command(found) == [
    '--config=configs/quickstart.py', f'--workdir={tmp_path}/runs/fast one', '--config.train.seed=3',
    '--config.optim.learning_rate=0.004',
  ]  # fmt: skip
