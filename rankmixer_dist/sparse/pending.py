"""A lookup that has begun: its ids are on their way to the ranks that own their rows, and no table was read yet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.types import ShardedModule

from rankmixer_dist.batch import JaggedIds


class Pending:
    """One batch's lookup in several TorchRec modules, each sharded or not, in three acts that all ranks begin alike.

    Made, it tells the ranks how many ids each gets. `send` waits for what they tell, and sends the ids. `look_up` waits
    for the ids of all ranks, reads the tables and sends the vectors. What a module is asked in one call is the same.

    Args:
        ids: the batch's.
        parts: modules, and what each looks up.
        stream: in which a GPU has the ids ready and exchanges them, so that waiting for them is not waiting for the
            current stream; None for the current one.
    """

    def __init__(
        self,
        ids: JaggedIds,
        parts: Sequence[tuple[nn.Module, KeyedJaggedTensor]],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.ids = ids
        self._stream = stream
        with self._aside():
            self._parts = [_Part(module, looked_up) for module, looked_up in parts]

    def send(self) -> None:
        """Sends the ids, once."""
        with self._aside():
            for part in self._parts:
                part.send()

    def look_up(self) -> list[Any]:
        """What each module returns, by the tables as they are now."""
        self.send()
        with self._aside():
            received = [part.receive() for part in self._parts]
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for part, ids in zip(self._parts, received, strict=True):
                part.record_stream(ids, current)
        return [part.look_up(ids) for part, ids in zip(self._parts, received, strict=True)]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):  # of None, the current one
            yield


class _Part:
    """The lookup in one module; one that is not sharded has the ids already."""

    def __init__(self, module: nn.Module, ids: KeyedJaggedTensor) -> None:
        self._module, self._ids = module, ids
        self._sharded = module if isinstance(module, ShardedModule) else None
        self._counts: Any = None
        self._received: Any = None
        self._context: Any = None
        if self._sharded is not None:
            self._context = self._sharded.create_context()
            self._counts = self._sharded.input_dist(self._context, ids)

    def send(self) -> None:
        if self._counts is not None:
            self._received, self._counts = self._counts.wait(), None

    def receive(self) -> Any:
        return self._ids if self._received is None else self._received.wait()

    def record_stream(self, ids: Any, stream: torch.cuda.Stream) -> None:
        ids.record_stream(stream)
        if self._context is not None:
            self._context.record_stream(stream)

    def look_up(self, ids: Any) -> Any:
        if self._sharded is None:
            return self._module(ids)
        return self._sharded.compute_and_output_dist(self._context, ids)
