"""The life of a run on machines that may be taken away: ask, wait, run, lose them, ask again, until done."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llamax.core import exits
from llamax.core.errors import UserError
from llamax.core.screen import tell
from llamax.launch import past
from llamax.launch.machines import Machines, Seen, State, Worker
from llamax.observe.ledger import Ledger, read_ledger
from llamax.train.supervise import FINAL, LONG_SECONDS, in_words

FIRST_DELAY, LONGEST_DELAY = 10.0, 600.0  # seconds between requests that fail
_ALIVE = 600.0  # seconds between two lines of the ledger at most, for the bill
_LAST_WORDS = 3.0  # seconds for what the job said last to arrive
_SILENCE = 600.0  # seconds in which workers may come up, or come back, before it counts as a failure
_PATIENCE = 3  # looks at a state that may mend itself, or turn out to be the end of the machines


class Life:
  """One run from its first request to its end; a second one in the same state folder is refused.

  All that decides is what the cloud and the workers say now: the ledger is for people, for the bill. So a life
  that was killed anywhere goes on by the same command.

  Args:
    state: folder of ledger.jsonl.
    poll: seconds between two looks.
    keep: leaves the machines when the job has ended.
    max_failures: ends after so many in a row: refused requests, installations, starts that did not last.
    sleep: waits; for tests.
  """

  def __init__(
    self,
    machines: Machines,
    state: Path,
    *,
    poll: float,
    keep: bool = False,
    max_failures: int = 5,
    sleep: Callable[[float], None] = time.sleep,
  ):
    self._machines, self._state = machines, state
    self._poll, self._keep, self._max_failures, self._sleep = poll, keep, max_failures, sleep
    self._ledger = Ledger(state)
    self._failures = 0
    self._odd = 0  # looks in a row at workers of which some run, some do not
    self._unheard = False  # the workers of these machines have never answered
    self._silent: float | None = None  # since when they have not
    self._trouble = ''  # as it was said last
    self._last: Seen | None = None
    self._first = True  # look at the workers
    self._anew = False  # the end that they may tell of has been told
    self._again = 0  # looks in a row with the same state
    self._there = False  # a request or machines, as far as this life has seen
    self._recorded = self._started = 0.0

  def live(self) -> int:
    """The job's exit code (core/exits.py).

    Raises:
      UserError: another life holds the folder; the machines cannot be had, or not be given back.
    """
    with held(self._state):
      events = read_ledger(self._state)
      self._anew, self._unheard = past.told(events), past.unheard(events)
      end = None if self._anew else past.end_of(events)
      self._ledger.record('opened', host=socket.gethostname(), pid=os.getpid(), chips=self._machines.chips)
      try:
        if end is not None:  # The one before died while it gave the machines back.
          if not end['stay']:
            self._give_back()
          return end['code']
        while True:
          code = self._step(self._look())
          if code is not None:
            return code
      except KeyboardInterrupt:
        self._say(
          'nobody looks after the run now; what runs goes on, and costs. The same command comes back to it'
        )
        raise
      finally:
        self._machines.follow(False)
        self._ledger.record('closed')
        self._ledger.close()

  def _look(self) -> Seen:
    seen = self._machines.look()
    self._again = self._again + 1 if self._last and seen.state is self._last.state else 1
    self._there = self._there or seen.state not in (State.ABSENT, State.UNKNOWN)
    now = time.monotonic()
    if seen != self._last or now - self._recorded > _ALIVE:
      if self._last is None or seen.state != self._last.state:
        self._say(f'machines: {seen.state.value}' + (f' ({seen.detail})' if seen.detail else ''))
      self._ledger.record('seen', state=seen.state.value, detail=seen.detail, chips=self._machines.chips)
      self._last, self._recorded = seen, now
    return seen

  def _step(self, seen: Seen) -> int | None:
    """Does what the moment asks for; the exit code when that was the last of it."""
    if seen.state is not State.ACTIVE:
      self._machines.follow(False)
      self._odd, self._silent = 0, None
    if seen.state is State.ACTIVE:
      return self._tend()
    if seen.state is State.ABSENT:
      return self._request()
    if seen.state is State.REFUSED:
      self._note('refused', detail=seen.detail)
      self._give_back()
      self._failed(f'the request failed: {seen.detail}')
    elif seen.state is State.LOST and self._again > 1:  # Nothing is deleted after one look.
      self._note('lost', detail=seen.detail)
      self._give_back()
      self._started = 0.0
    else:
      self._sleep(self._poll)
    return None

  def _request(self) -> int | None:
    if self._there and self._again < 2:  # Nothing is left alone after one look either.
      self._sleep(self._poll)
      return None
    if self._there:
      self._note('deleted_elsewhere')
      self._say('someone has deleted the machines: not asking for others')
      return exits.RESUME
    self._note('requesting')
    refused = self._machines.request()
    if refused is not None:
      self._note('refused', detail=refused)
      self._failed(f'the request was refused: {refused}')
    else:
      self._note('requested')
      self._there = self._unheard = True
      self._again = 0
    return None

  def _tend(self) -> int | None:
    """The machines are there: whatever the job needs."""
    workers = self._machines.workers()
    if workers is None:
      return self._hear_nothing()
    self._unheard, self._silent, self._trouble = False, None, ''
    running = sum(worker.state == 'running' for worker in workers)
    first, self._first = self._first, False
    if first and not running and (self._anew or any(worker.asked for worker in workers)):
      return self._start(workers)
    if (code := self._end(workers)) is not None:
      return self._finish(code, workers)
    if running == self._machines.count:
      self._odd = 0
      if self._started and time.monotonic() - self._started > LONG_SECONDS:
        self._failures = 0
      self._machines.follow(True)
      self._sleep(self._poll)
      return None
    if running and any(worker.asked for worker in workers):
      self._sleep(self._poll)  # Until the last of them has saved; a start would take the word to stop back.
      return None
    self._odd += 1
    ran = running or any(worker.state != 'none' for worker in workers)
    if ran and self._odd < _PATIENCE:
      # Those that are left will notice; or all were told to stop because the machines are being taken away.
      self._sleep(self._poll)
      return None
    return self._start(workers)

  def _hear_nothing(self) -> int | None:
    """Waits, says why. Workers that have never answered are a failure in the end, as nothing runs on them.

    Those that have answered may train for days while this machine's ssh is at fault.
    """
    now, trouble = time.monotonic(), self._machines.trouble
    if self._silent is None:
      self._silent = now
    if trouble != self._trouble:
      self._trouble = trouble
      self._note('silent', detail=trouble)
      self._say(trouble)
    if now - self._silent < _SILENCE:
      self._sleep(self._poll)
      return None
    self._silent = None
    why = f'not all workers have answered for {_SILENCE / 60:.0f} minutes; {trouble}'
    if self._unheard:
      self._note('failed', detail=why)
      return self._failed(why)
    self._say(f'{why}. What runs there goes on, and costs; llamax launch ... delete ends it')
    self._sleep(self._poll)
    return None

  def _start(self, workers: Sequence[Worker]) -> int | None:
    if self._started and time.monotonic() - self._started < LONG_SECONDS:
      self._started = 0.0
      return self._failed('the job does not stay up', exits.LOST)
    states = {worker.name: worker.state if worker.code is None else worker.code for worker in workers}
    try:
      if not self._machines.ready(workers):
        self._note('preparing')
        self._machines.prepare()
        self._note('prepared')
      self._note('starting', workers=states)
      self._machines.start()
    except UserError as error:
      self._note('failed', detail=str(error))
      return self._failed(str(error))
    self._note('started')
    self._machines.follow(True)
    self._started, self._odd = time.monotonic(), 0
    return None

  def _end(self, workers: Sequence[Worker]) -> int | None:
    """The code with which the job has ended for good, or None."""
    if len(workers) < self._machines.count:
      return None
    asked = any(worker.asked for worker in workers)
    codes = [worker.code for worker in workers if worker.state == 'ended' and worker.code is not None]
    final = [code for code in codes if code in FINAL and code != exits.DONE]
    if final:
      return final[0]
    if len(codes) < len(workers):
      # One that was killed while it saved has no code.
      over = asked and not any(worker.state == 'running' for worker in workers)
      return max([exits.RESUME, *codes]) if over else None
    if not any(codes):
      return exits.DONE
    if asked:
      return max(codes)
    # llamax supervise, there, has given up; but what was told to stop may be about to lose its machine.
    gave_up = [code for code in codes if code not in (exits.DONE, exits.RESUME, exits.INTERRUPTED, 143)]
    return max(gave_up) if gave_up else None

  def _finish(self, code: int, workers: Sequence[Worker]) -> int:
    codes = {worker.name: worker.code for worker in workers}
    self._machines.follow(True)
    self._sleep(min(self._poll, _LAST_WORDS))
    stay = self._keep or (any(worker.asked for worker in workers) and code != exits.DONE)
    self._note('ended', code=code, stay=stay, workers=codes)
    self._say(f'the job has ended: {in_words(code)}')
    if stay:
      self._say('the machines stay, and cost: llamax launch ... delete gives them back')
    else:
      self._give_back()
    return code

  def _failed(self, why: str, code: int | None = None) -> int | None:
    """Waits before the next try; where there were too many in a row `code`, or UserError when there is none."""
    self._failures += 1
    if self._failures < self._max_failures:
      delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (self._failures - 1))
      self._say(f'{why}; again in {delay:.0f} s ({self._failures} of {self._max_failures})')
      self._sleep(delay)
      return None
    self._note('gave_up', detail=why)
    if not self._keep and (self._there or self._machines.look().state is not State.ABSENT):
      self._give_back()
    if code is None:
      raise UserError(f'given up after {self._failures} failures in a row: {why}')
    self._say(f'given up after {self._failures} failures in a row: {why}')
    return code

  def _give_back(self) -> None:
    for tries in range(1, self._max_failures + 1):
      self._note('giving_back')
      failed = self._machines.give_back()
      if failed is None:
        self._note('given_back')
        self._there = False
        return
      self._note('failed', detail=failed)
      self._say(f'the machines could not be deleted: {failed}')
      self._sleep(min(LONGEST_DELAY, FIRST_DELAY * 2**tries))
    raise UserError(f'THE MACHINES MAY STILL BE THERE, AND COST; llamax launch ... delete: {failed}')

  def _note(self, event: str, **facts: object) -> None:
    self._ledger.record(event, **facts)
    self._recorded = time.monotonic()

  def _say(self, text: str) -> None:
    tell(f'launch: {text}')


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
  """A lock that the kernel gives back however this process ends."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise UserError(f'--state={folder} cannot be written: {error.strerror}') from None
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.read(lock, 100).decode(errors='replace').strip()
      raise UserError(
        f'{folder}: another llamax launch looks after this run already ({holder}); see it with the verbs '
        'status and logs, or end that one first: the job goes on meanwhile'
      ) from None
    os.truncate(lock, 0)
    os.write(lock, f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
    yield
  finally:
    os.close(lock)
