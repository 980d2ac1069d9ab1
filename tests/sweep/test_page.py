"""llamax/sweep/page.py: one page that needs no network, whatever a run is called."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from llamax.cli.main import main
from llamax.core.errors import UserError
from llamax.sweep.compare import compare
from llamax.sweep.figures import png
from llamax.sweep.gather import gather
from llamax.sweep.page import page
from llamax.sweep.picture import picture
from llamax.sweep.report import best_command, write, write_sweep_report
from tests.sweep.made_runs import base_config, make_plan, make_run

HOSTILE = '</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope='module')
def base():
  return base_config()


# As much of a browser as page.js asks for; a place in a drawing that is no number is an error.
BROWSER = r"""
const [data, script, clicks] = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const made = (tagName, dataset = {}) => ({
  tagName, dataset, clientWidth: 600, heard: {}, parentNode: {id: 'p', querySelectorAll: () => []},
  classList: {add() {}, remove() {}, contains: () => false}, append() {}, replaceChildren() {},
  setAttribute(name, value) { if (/NaN|Infinity|undefined/.test(value)) throw Error(`${name}=${value}`); },
  addEventListener(name, run) { this.heard[name] = run; },
});
const buttons = {x: ['step', 'tokens', 'time'], log: ['false', 'true'], curve: ['0', '1']};
for (const name in buttons) buttons[name] = buttons[name].map((value) => made('button', {[name]: value}));
let drawn = 0;
globalThis.innerWidth = 900;
globalThis.addEventListener = () => {};
globalThis.document = {
  getElementById: (id) => Object.assign(made('div'), {textContent: data}),
  querySelector: () => made('tbody'),
  querySelectorAll: (what) =>
    what === '#runs tbody tr' ? JSON.parse(data).runs.map(() => made('tr')) : buttons[what.slice(6, -1)] ?? [],
  createElementNS: (_, tag) => { if (++drawn > 1e5) throw Error('no end'); return made(tag); },
};
eval(script);
for (const [name, k] of clicks) buttons[name][k].heard.click();
console.log(drawn);
"""


def drawn_in_node(comparison, *clicks):
  """How many shapes page.js has drawn of it after clicks on (kind of button, number)."""
  node = shutil.which('node')
  if node is None:
    pytest.skip('no node here')
  found = Tags(page(comparison, 'Runs', None))
  data, script = (text for text in found.scripts if text.strip())
  fed = json.dumps([data, script, clicks])
  done = subprocess.run(
    [node, '-e', BROWSER], input=fed, capture_output=True, text=True, timeout=20, check=False
  )
  assert done.returncode == 0, done.stderr
  return int(done.stdout)


def append(path, text):
  with open(path, 'a') as file:
    file.write(text)


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


def test_a_picture_names_every_run_and_warns_of_nothing(base, tmp_path, monkeypatch):
  from matplotlib.axes import Axes

  named = []
  legend = Axes.legend
  monkeypatch.setattr(
    Axes,
    'legend',
    lambda axes, *a, **kw: named.extend(axes.get_legend_handles_labels()[1]) or legend(axes, *a, **kw),
  )
  for name in ('_under', '日本語', '$x$'):
    make_run(tmp_path / name, base, lines=10)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert png(compare(gather([str(tmp_path)]))).startswith(b'\x89PNG')
    assert len(named) == 3
    for k in range(9):  # so many that the best alone is named: where none has a value, nobody
      folder = make_run(tmp_path / f'more/{k}', base, lines=10, evals=0)
      append(folder / 'metrics.jsonl', json.dumps({'step': 1, 'eval/v/loss': 'NaN'}) + '\n')
    assert png(compare(gather([str(tmp_path / 'more')]))).startswith(b'\x89PNG')


@pytest.mark.parametrize('where', ['', '.', 'folder', '..'])
def test_a_report_into_a_folder_is_an_error(base, tmp_path, where, monkeypatch):
  make_run(tmp_path / 'folder', base, lines=10)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='is a folder; want the name of a file'):
    write(compare(gather(['folder'])), csv=Path(where))


def test_a_report_into_what_is_no_plain_file_does_not_take_its_place(base, tmp_path):
  make_run(tmp_path / 'run', base, lines=10)
  found = compare(gather([str(tmp_path / 'run')]))
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  with open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), 'rb') as reader:
    write(found, csv=pipe)
    assert pipe.is_fifo()
    assert reader.readline().startswith(b'run,')
  link = tmp_path / 'link.csv'
  link.symlink_to(tmp_path / 'real.csv')
  write(found, csv=link)
  assert link.is_symlink() and (tmp_path / 'real.csv').read_text().startswith('run,')


def test_a_page_of_a_config_that_this_llamax_cannot_make(base, tmp_path):
  for name, changes in (('preset', {'model.preset': 'of_tomorrow'}), ('value', {'train.num_steps': None})):
    folder = make_run(tmp_path / name, base, changes, lines=10)
    config = json.loads((folder / 'config.json').read_text())
    config['train']['num_steps'] = None if name == 'value' else 1000
    (folder / 'config.json').write_text(json.dumps(config))
    assert main(['compare', str(folder), f'--html={tmp_path}/page.html']) == 0


def test_the_script_ends_where_no_run_has_a_time(base, tmp_path):
  for k in range(2):
    folder = make_run(tmp_path / f'{k}', base, {'train.seed': k}, lines=5, evals=0)
    lines = [{'step': step, 'loss': 4.0 - step / 10} for step in range(1, 9)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert drawn_in_node(compare(gather([str(tmp_path)])), ['x', 2], ['log', 1])


@pytest.mark.parametrize('kind', ['line', 'heat', 'parallel'])
def test_the_script_draws_each_picture_of_runs_whose_key_is_none(kind, base, tmp_path):
  for k in range(6):
    point = {'optim.clip_norm': (None, 0.5, 1.0)[k % 3]}
    point |= {'line': {}, 'heat': {'train.seed': k // 3}, 'parallel': {'train.seed': k}}[kind]
    make_run(tmp_path / f'{k}', base, point, floor=2 + k, lines=10)
  found = compare(gather([str(tmp_path)]))
  assert picture(found).kind == kind
  assert drawn_in_node(found, ['log', 1], ['x', 2], ['curve', 1])
