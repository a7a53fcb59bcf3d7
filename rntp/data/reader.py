"""Contexts read ahead of their use, in threads or in worker processes.

A context is a function of its ordinal, so who reads it when changes nothing: workers hold no state,
their number may change at every start, and one that is killed is replaced and asked again.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Literal

import torch

from rntp.data.damage import Damage
from rntp.data.storage import DEADLINE_S
from rntp.data.stream import Read, Stream
from rntp.errors import DataError
from rntp.types import Context

Kind = Literal["thread", "process"]

_CHUNK = 32  # ordinals that a worker reads at a time, at most
_MAX_RESTARTS = 3  # in a row, without a context in between


class Reader:
    """`reader[ordinal]` is `stream[ordinal]`; `take` has workers read, and begins what comes next.

    workers: threads or processes; 0 reads in the caller, when asked. deadline_s: of one read; where
    a worker says nothing for twice as long, all of them are started anew.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        workers: int = 0,
        kind: Kind = "thread",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.stream = stream
        self.num_documents = stream.num_documents
        self.num_too_short = stream.num_too_short
        self.restarts = 0
        self._workers = workers
        self._kind: Kind = kind
        self._deadline_s = deadline_s
        self._pool: Executor | None = None
        self._pending: dict[int, tuple[Future[list[Read]], int]] = {}

    def __getitem__(self, ordinal: int) -> Context:
        return self.stream[ordinal]

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        """As `ContextStream.damaged`."""
        return self.stream.damaged

    def take(self, ordinals: Sequence[int], ahead: Iterable[int] = ()) -> list[Context]:
        """The contexts of `ordinals`, in order. ahead: those that workers may begin now.

        What was begun before and is in neither is forgotten, so no more than these are held.
        Raises as the stream does, and DataError where workers keep dying.
        """
        if self._workers == 0:
            return [self.stream[n] for n in ordinals]
        wanted = dict.fromkeys([*ordinals, *ahead])
        for n in [n for n in self._pending if n not in wanted]:
            self._pending.pop(n)[0].cancel()
        try:
            self._begin([n for n in wanted if n not in self._pending])
        except BrokenProcessPool:  # a worker died since the last call
            self._start_anew(wanted)
        contexts = []
        for n in ordinals:
            read = self._result(n)
            self.stream.exclude(read)
            contexts.append(read.context)
        return contexts

    def close(self) -> None:
        """End the workers; what they had begun is dropped. The reader can be used again."""
        self._pending.clear()
        pool, self._pool = self._pool, None
        if isinstance(pool, ProcessPoolExecutor):
            # A worker that hangs would keep shutdown, and the interpreter's end, waiting for ever.
            for process in list((pool._processes or {}).values()):
                process.kill()
        if pool is not None:
            pool.shutdown(wait=self._kind == "process", cancel_futures=True)

    def _begin(self, ordinals: list[int]) -> None:
        if not ordinals:
            return
        if self._pool is None:
            self._pool = self._open_pool()
        size = min(_CHUNK, -(-len(ordinals) // self._workers))
        for start in range(0, len(ordinals), size):
            chunk = ordinals[start : start + size]
            if self._kind == "process":
                future = self._pool.submit(_read_in_worker, chunk)
            else:
                future = self._pool.submit(_read_chunk, self.stream, chunk)
            self._pending |= {n: (future, i) for i, n in enumerate(chunk)}

    def _result(self, ordinal: int) -> Read:
        failures = 0
        while True:
            future, i = self._pending[ordinal]
            try:
                read = future.result(timeout=2 * self._deadline_s)[i]
            except (BrokenProcessPool, TimeoutError) as error:
                failures += 1
                if failures > _MAX_RESTARTS:
                    self.close()
                    raise DataError(
                        f"loader workers ended or hung {failures} times at ordinal {ordinal} "
                        f"({error}); lower data.workers if memory ran out, or set it to 0 to see "
                        "the error itself"
                    ) from error
                self._start_anew(list(self._pending))
                continue
            except BaseException:
                self.close()
                raise
            del self._pending[ordinal]
            return _with_tensor(read)

    def _start_anew(self, wanted: Iterable[int]) -> None:
        self.restarts += 1
        self.close()
        self._begin(list(wanted))

    def _open_pool(self) -> Executor:
        if self._kind == "thread":
            return ThreadPoolExecutor(self._workers, thread_name_prefix="rntp-data")
        # Spawned: a fork would copy the trainer's threads, handlers and device.
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_open_in_worker,
            initargs=(self.stream,),
        )


_stream: Stream


def _open_in_worker(stream: Stream) -> None:
    global _stream
    _stream = stream
    # Ctrl-C reaches the whole group; the trainer decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _read_in_worker(ordinals: list[int]) -> list[Read]:
    return [_with_array(read) for read in _read_chunk(_stream, ordinals)]


def _read_chunk(stream: Stream, ordinals: list[int]) -> list[Read]:
    return [stream.read(n) for n in ordinals]


# torch sends a tensor between processes as shared memory, which a killed process may leave behind;
# an array goes through the pipe as bytes.
def _with_array(read: Read) -> Read:
    context = read.context
    arrays = {"token_ids": context.token_ids.numpy(), "given": context.given.numpy()}
    return replace(read, context=replace(context, **arrays))  # type: ignore[arg-type]


def _with_tensor(read: Read) -> Read:
    context = read.context
    ids, given = torch.as_tensor(context.token_ids), torch.as_tensor(context.given)
    return replace(read, context=replace(context, token_ids=ids, given=given))
