"""One process of several: its share of the work, exchange of results, and work of the main process alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from recbole_llm.distributed.connection import group, talking
from recbole_llm.distributed.gradients import add_up
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

Value = TypeVar("Value")
Batch = TypeVar("Batch")
_NOT_DONE = "recbole-llm: not done"


class NotDone(RuntimeError):
    """A process could not do its part of what all do together, so that none continues with it."""


@dataclass(frozen=True)
class Process:
    """One of the processes that work together; what it asks of the others, all must ask in the same order.

    Attributes:
        rank: from 0.
        count: number of them all.

    Example:
        >>> Process().is_main, Process(rank=1, count=3).own(["a", "b", "c", "d", "e"])
        (True, ['b', 'e'])
        >>> Process().gather_rows({1: "b", 0: "a"}), Process().from_main(7), Process().share_out([1, 2], str)
        ({1: 'b', 0: 'a'}, 7, ['1', '2'])
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files, logs and draws bars."""
        return self.rank == 0

    def own(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches that are this process's to compute."""
        return batches[self.rank :: self.count]

    def share_out(self, batches: Sequence[Batch], compute: Callable[[Batch], Value]) -> list[Value]:
        """What ``compute`` gives for every batch, in their order, each computed by one process.

        Args:
            batches: as one process would make them.
            compute: gives plain data, arrays, or tensors on the CPU.
        """
        parts = self.gather([compute(batch) for batch in self.own(batches)])
        return [parts[index % self.count][index // self.count] for index in range(len(batches))]

    def gather(self, value: Value) -> list[Value]:
        """A value of every process, by rank. Plain data, arrays, or tensors on the CPU."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with talking():
            dist.all_gather_object(found, value, group=group())
        return all_done(found)

    def all_do(self, part: Callable[[], bool]) -> bool:
        """Whether all processes can do their part; where one cannot, the others leave theirs when they next ask.

        Args:
            part: gives whether it was done; may ask the others, if all ask in the same order.

        Example:
            >>> Process().all_do(lambda: True), Process().all_do(lambda: False)
            (True, False)
        """
        try:
            done = part()
            self.gather(done or _NOT_DONE)
        except NotDone:
            return False
        return done

    def gather_rows(self, found: Mapping[int, Value]) -> dict[int, Value]:
        """What all processes have found, by row, of which each is known to one of them."""
        return {row: value for own in self.gather(dict(found)) for row, value in own.items()}

    def complete(self, table: Any, batches: Sequence[Iterable[int]]) -> None:
        """Write the rows that the other processes have computed into a table.

        Args:
            table: array or tensor ``[rows, ...]`` with the rows of this process's own batches; the others' are written.
            batches: the rows of each, of all processes.
        """
        if self.count == 1:
            return
        own = [row for batch in self.own(batches) for row in batch]
        values = table[own]
        for rows, found in self.gather((own, values.cpu() if hasattr(values, "cpu") else values)):
            if len(rows):
                table[rows] = found.to(table.device) if hasattr(found, "to") else found

    def from_main(self, value: Value) -> Value:
        """The main process's value, whatever the others give."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        held = [value if self.is_main else None]
        with talking():
            dist.broadcast_object_list(held, src=0, group=group())
        return cast(Value, held[0])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of an array over all processes, added by rank, so that all have the same bits."""
        first, *others = self.gather(values)
        for other in others:
            first = first + other
        return first

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every weight the sum of its gradients over all processes; one that no process has a gradient of, none.

        Args:
            weights: in the same order on all processes.
        """
        if self.count == 1:
            return
        import torch

        own = list(weights)
        there = zip(*self.gather([weight.grad is not None for weight in own]), strict=True)
        for weight, flags in zip(own, there, strict=True):
            if any(flags) and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        add_up([weight.grad for weight in own if weight.grad is not None])


def all_done(found: list[Value]) -> list[Value]:
    """What processes tell one another.

    Raises:
        NotDone: one tells that it gives up what they do together.
    """
    if any(isinstance(value, str) and value == _NOT_DONE for value in found):
        raise NotDone
    return found


def process() -> Process:
    """This process among those that work together now: one of one, unless a launcher has started several.

    Example:
        >>> process()
        Process(rank=0, count=1)
    """
    return Process() if _alone else launched()


def launched() -> Process:
    """This process among all that a launcher has started, also where it works alone."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


_alone = 0  # contexts entered


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process shares no work and waits for no other, as the others are not in it."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def on_main(compute: Callable[[], Value]) -> Value:
    """What the main process computes, while the others wait for it.

    Args:
        compute: gives plain data.

    Raises:
        InputError: what the main process has raised, on all of them.
    """
    together = process()
    if together.count == 1:
        return compute()
    value: Any = None
    error: InputError | None = None
    if together.is_main:
        try:
            with alone():
                value = compute()
        except InputError as found:
            error = found
    value, error = together.from_main((value, error))
    if error is not None:
        raise error
    return cast(Value, value)
