"""What llamax sweep prints before anything starts; what it refuses."""

from pathlib import Path

import pytest

from llamax.cli.main import main
from llamax.launch.code import Code
from llamax.sweep import count

SSH = ('--launcher=ssh', '--launch_options=--hosts=a,b')
GKE = ('--launcher=gke', '--launch_options=--tpu=v5e:2x4 --image=x')
GOOD = """
def get_sweep(s):
  return s.product(s.grid('optim.learning_rate', [1e-3, 3e-3]), s.fixed({'log.wandb_project': "it's $(x)"}))
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
  """(text after get_config, *words) -> (exit code, output, errors) of a sweep in tmp_path/out."""
  monkeypatch.setattr(count, 'count_parameters', lambda configs: [1000] * len(configs))

  def run(text, *words):
    file = tmp_path / 'mine.py'
    file.write_text(f'import debug\nget_config = debug.get_config\n{text}')
    code = main(['sweep', f'--config={file}', f'--workdir={tmp_path}/out', *words])
    found = capsys.readouterr()
    assert not (tmp_path / 'out').exists()
    return code, found.out, found.err

  return run


def test_the_table(sweep):
  code, out, _ = sweep(GOOD, '--dry_run', '--slots=2')
  assert code == 0
  assert 'learning_rate=0.001' in out and 'optim.learning_rate' in out and 'wandb' not in out
  # 20 steps of 8 rows of 64 tokens, twice; 6 FLOPs for each parameter beside the table, attention.
  assert '10.2k' in out and '2 runs, 2 to do: 20.5k tokens' in out
  assert 'time unknown: no run has been measured yet' in out


def test_the_table_with_a_given_speed(sweep):
  _, out, _ = sweep(GOOD, '--dry_run', '--flops_per_second=1e3')
  assert 'by --flops_per_second' in out and '?' not in out


def test_printed_commands_are_quoted(sweep):
  import shlex

  code, out, _ = sweep(GOOD, '--launcher=print', '--config.train.num_steps=30')
  assert code == 0
  lines = [shlex.split(line) for line in out.splitlines()]
  assert len(lines) == 2 and all(line[:4] == ['llamax', 'supervise', '--', 'llamax'] for line in lines)
  assert lines[1][-3:] == [
    '--config.train.num_steps=30',
    '--config.optim.learning_rate=0.003',
    "--config.log.wandb_project=it's $(x)",
  ]


def test_jobs_of_launch(sweep):
  words = ('--launcher=slurm', '--launch_options=--nodes=2 --partition=a', '--dry_run', '--remote=/mnt/x')
  code, out, _ = sweep(GOOD, *words)
  assert code == 0
  jobs = [
    line for line in out.splitlines() if line.startswith('llamax launch slurm run --name=out-learning-rate-')
  ]
  assert len(jobs) == 2 and all(' --nodes=2 --partition=a -- llamax train ' in line for line in jobs)
  assert '--workdir=/mnt/x/learning_rate=0.001' in jobs[0]
  names = {line.split()[4] for line in jobs}
  assert len(names) == 2 and all(len(name) <= len('--name=') + 40 for name in names)


@pytest.mark.parametrize(('words', 'slots'), [(SSH, 1), (GKE, 4), ((*GKE, '--slots=9'), 9)])
def test_how_many_jobs_at_a_time(words, slots, monkeypatch, sweep):
  seen = []
  monkeypatch.setattr(
    'llamax.sweep.local.run_here', lambda folder, plan, slots, **rest: seen.append(len(slots)) or 0
  )
  monkeypatch.setattr('llamax.launch.code.find', lambda *words: Code('1', Path('/nowhere')))
  assert sweep(GOOD, *words)[0] == 0 and seen == [slots]


def test_a_workdir_that_is_a_file(tmp_path, capsys):
  (tmp_path / 'c.py').write_text(f'import debug\nget_config = debug.get_config\n{GOOD}')
  assert main(['sweep', f'--config={tmp_path}/c.py', f'--workdir={tmp_path}/c.py', '--dry_run']) == 2
  assert 'c.py is a file; want a folder' in capsys.readouterr().err


def test_an_argument_after_the_colon(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(count, 'count_parameters', lambda configs: None)
  file = tmp_path / 'mine.py'
  file.write_text(
    'import debug\ndef get_config(arg=""):\n  return debug.get_config()\n'
    'def get_sweep(s, arg="1"):\n  return s.grid("train.seed", range(int(arg)))\n'
  )
  for arg, runs in ((':3', 3), ('', 1)):
    assert main(['sweep', f'--config={file}{arg}', f'--workdir={tmp_path}/out', '--dry_run']) == 0
    assert f'{runs} runs, {runs} to do' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('text', 'words', 'told'),
  [
    ('', (), 'mine.py has no function get_sweep; beside get_config want'),
    ('def get_sweep(s):\n  return [1]', (), 'returns list; want what s.grid'),
    ('def get_sweep(s):\n  return s.grids()', (), 'mine.py:4: AttributeError'),
    ('def get_sweep(s):\n  return s.grid("train.seed", [])', (), "mine.py:4: grid('train.seed') has no values"),
    (
      'def get_sweep(s):\n  return s.grid("train.sed", [1])',
      (),
      "run train.sed=1: config has no key 'train.sed'",
    ),
    (GOOD, ('--launcher=slrm',), "--launcher=slrm is not known. Did you mean 'slurm'"),
    (GOOD, ('--retry=finished',), 'want failed, pruned'),
    (GOOD, ('--max_runs=0',), 'want at least 1'),
    (GOOD, ('--max_failures=0',), '--max_failures=0: want at least 1'),
    (GOOD, ('--slots=0',), '--slots=0: want at least 1'),
    (GOOD, ('--prune=median',), 'want diverged'),
    (GOOD, ('--flops_per_second=-1', '--dry_run'), 'above 0'),
    (GOOD, ('--remote=/x',), 'want --launcher='),
    (GOOD, ('--launcher=slurm', '--launch_options="'), 'No closing quotation'),
    (GOOD, ('--launcher=gke', '--devices=0'), 'are those of this machine'),
    (GOOD, ('--launcher=slurm', '--remote='), '--remote= is empty'),
    (GOOD, (*SSH, '--slots=2'), '--slots=2: --launcher=ssh has one list of hosts'),
    (GOOD, ('--launcher=slurm', '--launch_options=--nodez=1'), "'--nodez=1' is no option of it"),
    (GOOD, ('--launcher=slurm', '--launch_options=--nodes=x'), "argument --nodes: invalid int value: 'x'"),
    (GOOD, ('--launcher=slurm', '--launch_options=--help'), 'that shows its help, starts nothing'),
    (GOOD, ('--launcher=slurm', '--launch_options=--nodes=1 stop'), "'stop' is no option of it"),
    (GOOD, ('--launcher=slurm', '--launch_options=--nodes=1 --dry_run'), 'neither --dry_run nor --name'),
    (GOOD, ('--launcher=slurm', '--launch_options=--nodes=1 --name=x'), 'neither --dry_run nor --name'),
    (GOOD, ('--launcher=slurm', '--dry_run'), '--nodes: want a number'),
    (GOOD, (*GKE, '--workdir=out', '--dry_run'), '--remote=DIR says what DIR/runs of the sweep is there'),
    (GOOD, ('--config.optim.learning_rate=1',), 'the sweep itself sets that key'),
  ],
)
def test_refused(sweep, text, words, told):
  code, _, err = sweep(text, *words)
  assert code == 2 and told in err
