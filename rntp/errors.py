"""Errors for users: each says what is wrong and what to do. They need no other package."""


class RntpError(Exception):
    """An error for the user: says what is wrong and what to do. `exit_code` is the program's.

    agreed: every rank of the run raises it, so that one has to say it (see `rntp.runtime.ranks`).
    """

    exit_code = 1
    agreed = False


class ConfigError(RntpError):
    """Usage or configuration."""

    exit_code = 2


class DataError(RntpError):
    """Corpus, shards, tokenizer of the corpus."""

    exit_code = 3


class CheckpointError(RntpError):
    """A checkpoint that cannot be written, read or continued."""

    exit_code = 4


class Preempted(RntpError):
    """The run was asked to stop; the same command resumes it."""

    exit_code = 5


class JudgesAway(Preempted):
    """Too many verdicts of judges are missing; the same command resumes, once they answer."""


class SamplersLost(Preempted):
    """No sampler of a store brings anything any more; the same command resumes the run."""


class Diverged(RntpError):
    """Too many non-finite steps in a row, or an alarm with `run.on_trouble: stop`."""

    exit_code = 6


class RanksLost(RntpError):
    """A rank of the run failed, or did not come where the others waited for it."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, which says nothing of what was tried in it.

    PyTorch says so with a RuntimeError of many wordings.
    """
    said = str(error).lower()
    wordings = ("not enough memory", "out of memory", "allocate memory", "bad_alloc")
    ran_out = isinstance(error, RuntimeError) and any(words in said for words in wordings)
    return ran_out or isinstance(error, MemoryError)
