"""The exit codes of the command line: what whoever started a run may do next."""

DONE = 0
BUG = 1  # an error that llamax did not foresee, with a traceback
MISTAKE = 2  # of the user: the same command fails again
FAILED_CHECK = 65  # convert --verify: the copy does not compute what its original does
STORAGE = 74  # a disk failed where no later try can make up for it: the same command goes on once it is mended
RESUME = 75  # asked to stop (SIGTERM): the same command goes on
LOST = 76  # a process of the run died or is stuck: the same command, on all hosts, goes on
NUMBERS = 77  # the loss or the weights went bad; going on needs a person
FENCED = 78  # another process has taken over the workdir
INTERRUPTED = 130  # Ctrl-C: the same command goes on


class Stop(Exception):
  """Ends the command with `code`; the message says why, what to do."""

  def __init__(self, code: int, message: str):
    super().__init__(message)
    self.code = code
