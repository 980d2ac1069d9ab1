"""Drawn tokens as text that ends before a stop string."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from llamax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
  """What a prompt was continued with.

  text: without the prompt, without end-of-text, cut before the first stop string. ids: every drawn token,
  the one that ended it included. logprobs: of each id in nats, by the model as it is (before temperature or
  filters). finish: 'eos' (the model ended the text), 'stop' (a stop string) or 'length' (max_new_tokens).
  """

  text: str
  ids: tuple[int, ...]
  logprobs: tuple[float, ...]
  finish: str


class Continuation:
  """One prompt's continuation while it grows. finish: None until it has ended."""

  def __init__(self, tokenizer: 'Tokenizer', stop: Sequence[str], max_new_tokens: int):
    self.finish: str | None = None
    self._decoder = tokenizer.stream()
    self._eos_id = tokenizer.eos_id
    self._stop = stop
    self._max_new_tokens = max_new_tokens
    self._said: list[str] = []
    self._held = ''  # may be the beginning of a stop string
    self._ids: list[int] = []
    self._logprobs: list[float] = []

  def push(self, token: int, logprob: float) -> str:
    """The text that is certain with this token, '' when there is none yet. After the end nothing is taken."""
    if self.finish is not None:
      return ''
    self._ids.append(token)
    self._logprobs.append(logprob)
    text = self._watch('' if token == self._eos_id else self._decoder.push(token))
    if self.finish is None and token == self._eos_id:
      return text + self._end('eos')
    if self.finish is None and len(self._ids) == self._max_new_tokens:
      return text + self._end('length')
    return text

  def completion(self) -> Completion:
    assert self.finish is not None, 'not ended'
    return Completion(''.join(self._said), tuple(self._ids), tuple(self._logprobs), self.finish)

  def _end(self, reason: str) -> str:
    """Half a character, half a stop string: nothing follows that could complete it."""
    text = self._watch(self._decoder.flush())
    if self.finish is None:
      self.finish = reason
      text += self._say(self._held)
    return text

  def _watch(self, piece: str) -> str:
    text = self._held + piece
    hits = [index for index in map(text.find, self._stop) if index >= 0]
    if hits:
      self.finish = 'stop'
      return self._say(text[: min(hits)])
    certain = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
    self._held = text[certain:]
    return self._say(text[:certain])

  def _say(self, text: str) -> str:
    self._said.append(text)
    return text


def _overlap(text: str, stop: str) -> int:
  """Length of the longest end of `text` with which `stop` begins."""
  return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
