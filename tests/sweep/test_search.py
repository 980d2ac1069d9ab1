"""A study by Optuna: no trial lost or run twice, whatever is killed; the same draws as without a kill."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamax.cli.configure import load
from llamax.core.errors import UserError
from llamax.observe.ledger import read_ledger
from llamax.sweep import search
from llamax.sweep import space as s
from llamax.sweep.plan import keep_plan, read_plan
from llamax.sweep.search import Searched, make_plan
from llamax.sweep.state import FAILED, FINISHED, PRUNED, SweepLedger, names_of, run_states, trials

optuna = pytest.importorskip('optuna', reason="pip install 'llamax[sweep]'")

HERE = Path(__file__).parent
STEPS = 20


def sweep(folder, *words):
  environment = os.environ | {'PYTHONPATH': str(HERE.parents[1])}
  return subprocess.run(
    [sys.executable, HERE / 'fake_sweep.py', folder, *map(str, words)],
    env=environment, text=True, capture_output=True, timeout=250, check=False,
  )  # fmt: skip


def of_optuna(folder):
  return optuna.load_study(study_name='sweep', storage=f'sqlite:///{folder}/study.db')


def test_a_killed_study_draws_what_an_undisturbed_one_does(request, tmp_path):
  if request.config.getoption('--scale') == 'quick':
    pytest.skip('several processes, each with Optuna: with --scale=ci')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  trials_wanted = 12  # Ten are drawn at random before TPE has enough to go by.
  assert sweep(whole, trials_wanted, STEPS, 1, 'study').returncode == 0
  codes = [sweep(killed, trials_wanted, STEPS, 1, 'study', 'kill').returncode for _ in range(3)]
  assert -signal.SIGKILL in codes
  done = sweep(killed, trials_wanted, STEPS, 1, 'study')
  assert done.returncode == 0, done.stdout + done.stderr
  assert trials(killed) == trials(whole) and len(trials(whole)) == trials_wanted
  assert [t.values for t in of_optuna(killed).trials] == [t.values for t in of_optuna(whole).trials]
  for name in trials(killed):
    assert [line['event'] for line in read_ledger(killed / 'runs' / name)] == ['end']
  assert not list(killed.glob('runs/*/twice'))
  best = of_optuna(whole).best_trial
  assert best.values == [best.params['x'] * (1 + 1 / STEPS)]
  # Of twelve log-uniform draws from 1 to 10 the best lies below the median of the distribution.
  assert best.params['x'] < math.sqrt(10)
  assert len({t.params['x'] for t in of_optuna(whole).trials}) == trials_wanted


def test_its_pruner_gives_trials_up(tmp_path):
  done = sweep(tmp_path, 10, 60, 1, 'study', 'median')
  assert done.returncode == 0, done.stdout + done.stderr
  names = list(trials(tmp_path))
  states = run_states(tmp_path, names)
  pruned = [name for name in names if states[name].state == PRUNED]
  assert pruned and all(states[name].reason.startswith('median: eval/x/loss') for name in pruned)
  of_them = {t.number for t in of_optuna(tmp_path).trials if t.state == optuna.trial.TrialState.PRUNED}
  assert {int(name[-4:]) for name in pruned} == of_them
  assert min(of_them) >= 5  # It compares with five at least.


class Result:
  """Stands for the metrics of a run."""

  def __init__(self, name, evals):
    self.name, self.evals = name, evals
    self.latest = {'step': max(evals), 'loss': 2.0} if evals else {'step': 4, 'loss': 2.0, 'eval/x/loss': 3.0}
    self.result = evals[max(evals)] if evals else None


def make(folder, resolve=lambda texts: None, **settings):
  study = s.study(
    4, {'optim.learning_rate': s.log_uniform(1e-4, 1e-1), **settings.pop('draws', {})}, **settings
  )
  plan = make_plan('configs/debug.py', (), study, lambda texts: load('configs/debug.py', texts)[0], None)
  keep_plan(folder, plan)
  assert read_plan(folder) == plan
  return Searched(folder, study, plan, resolve, SweepLedger(folder)), plan


def test_what_optuna_is_told(tmp_path):
  queue, plan = make(tmp_path)
  ends = [(FINISHED, {5: 4.0, 9: 3.0}), (FAILED, {}), (FINISHED, {5: math.nan}), (PRUNED, {5: 8.0})]
  for state, evals in ends:
    run, lock = queue.next(())
    queue.ended(run.name, state, Result(run.name, evals))
    lock.release()
  assert queue.next(()) is None
  found = of_optuna(tmp_path).trials
  assert [t.state.name for t in found] == ['COMPLETE', 'FAIL', 'FAIL', 'PRUNED']
  assert found[0].value == 3.0 and found[0].intermediate_values == {5: 4.0, 9: 3.0}
  assert names_of(tmp_path, plan) == [f'trial-000{i}' for i in range(4)] == queue.names()


def test_an_objective_that_no_run_has_is_told_by_the_first_that_ends(tmp_path):
  queue, _ = make(tmp_path, objective='eval/x/los')
  run, lock = queue.next(())
  with pytest.raises(UserError, match=r"trial-0000 .* without .* 'eval/x/los', .* it has: eval/x/loss, loss"):
    queue.ended(run.name, FINISHED, Result(run.name, {}))
  assert [t.state.name for t in of_optuna(tmp_path).trials] == ['RUNNING']
  lock.release()


def test_a_run_under_way_is_handed_out_once_an_interrupted_one_again(tmp_path):
  queue, _ = make(tmp_path)
  first, lock = queue.next(())
  second, other = queue.next(())
  assert (first.name, second.name) == ('trial-0000', 'trial-0001')
  lock.release()
  again, lock = Searched(tmp_path, queue._spec, *make_again(tmp_path)).next(())
  assert again == first
  lock.release()
  other.release()


def make_again(folder):
  return read_plan(folder), lambda texts: None, SweepLedger(folder)


def test_values_that_do_not_fit_are_a_failed_trial(tmp_path):
  def resolve(texts):
    if dict(texts)['optim.schedule'] == 'wsd':
      raise UserError('no such thing')

  queue, _ = make(tmp_path, resolve, draws={'optim.schedule': s.choice(['wsd', 'cosine'])})
  seen = []
  while found := queue.next(()):
    run, lock = found
    seen.append(run.point['optim.schedule'])
    queue.ended(run.name, FINISHED, Result(run.name, {1: 1.0}))
    lock.release()
  states = [state.state for state in run_states(tmp_path, queue.names()).values()]
  assert len(states) == 4 and set(seen) == {'cosine'} and states.count(FAILED) == 4 - len(seen) > 0
  refused = [line for line in read_ledger(tmp_path) if line['event'] == 'refused']
  assert len(refused) == states.count(FAILED) and refused[0]['why'] == 'no such thing'


@pytest.mark.parametrize('sampler', search.SAMPLERS)
def test_each_sampler_draws_within_its_ends_never_the_same_twice(tmp_path, sampler):
  draws = {
    'train.seed': s.int_uniform(3, 5),
    'optim.b1': s.uniform(0.8, 0.95),
    'data.weights': s.choice([(1.0,), (2.0,)]),
    'optim.clip_norm': s.choice([None, 1.0]),
  }
  queue, _ = make(tmp_path, draws=draws, sampler=sampler)
  points = []
  while found := queue.next(()):
    run, lock = found
    points.append(run.point)
    queue.ended(run.name, FINISHED, Result(run.name, {1: run.point['optim.b1']}))
    lock.release()
  assert len(points) == 4 and len({p['optim.learning_rate'] for p in points}) == 4
  for point in points:
    assert 1e-4 <= point['optim.learning_rate'] <= 1e-1 and 0.8 <= point['optim.b1'] <= 0.95
    assert point['train.seed'] in (3, 4, 5) and type(point['train.seed']) is int
    assert point['data.weights'] in ((1.0,), (2.0,)) and point['optim.clip_norm'] in (None, 1.0)


@pytest.mark.parametrize(
  ('settings', 'told'),
  [
    ({'sampler': 'tp'}, "s.study: sampler='tp' is not known. Did you mean 'tpe'"),
    ({'pruner': 'mean'}, "s.study: pruner='mean' is not known"),
    ({'direction': 'up'}, 'direction'),
    ({'draws': {'optim.lr': s.uniform(0, 1)}}, "no key 'optim.lr'"),
    ({'draws': {'train.seed': s.uniform(0.5, 1)}}, 'train.seed'),
    ({'draws': {'optim.schedule': s.choice(['cosine', 3])}}, 'optim.schedule=3'),
    ({'base': {'train.num_steps': 'x'}}, 'train.num_steps'),
    ({'objective': 3}, 'objective=3; want a name'),
    ({'objective': ''}, "objective=''; want a name"),
  ],
)
def test_refused(tmp_path, settings, told):
  with pytest.raises(UserError, match=told):
    make(tmp_path, **settings)


def test_without_optuna_the_line_that_installs_it(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  with pytest.raises(UserError, match=r"pip install 'llamax\[sweep\]'"):
    make(tmp_path)
