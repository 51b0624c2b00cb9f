"""Several processes of one command: which of them this one is, what they deal out and what they tell one another.

A launcher (``accelerate launch``, ``torchrun``) starts one command several times. All processes read the same data,
hold the same weights and run the same code. Work that takes time is dealt out by whole batches, exactly as one process
would make them: batch b goes to process b mod count. So a batch has the bits that it has in one process, wherever it is
computed, and what is put together again in the order of the rows equals what one process computes.

Plain data go over gloo, so that no GPU is asked; gradients go over what accelerate has chosen for their device. In a
command that nobody has launched nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from recbole_llm.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

Value = TypeVar("Value")
Batch = TypeVar("Batch")
PATIENCE = timedelta(days=30)  # another may train a model meanwhile; one that has died shows by its connection
LOOK = timedelta(seconds=2)  # how often one that waits for a word looks whether another has failed
BUCKET = 2**26  # numbers of gradients that are sent at once
_PREFIX, _FAILED = "recbole-llm/", "failed"


class OtherProcessEnded(RuntimeError):
    """Another process of the command has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Process:
    """One of the processes that work together; what it asks of the others, all must ask in the same order.

    Attributes:
        rank: from 0.
        count: of them all.

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

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)

    def gather(self, value: Value) -> list[Value]:
        """A value of every process, by rank. Plain data, arrays, or tensors on the CPU."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _talking():
            dist.all_gather_object(found, value, group=_group())
        return found

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
        with _talking():
            dist.broadcast_object_list(held, src=0, group=_group())
        return cast(Value, held[0])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of an array over all processes, added by rank, so that all have the same bits."""
        first, *others = self.gather(values)
        for other in others:
            first = first + other
        return first

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A context that the main process passes through before the others enter it."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

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
        with _talking():
            for bucket in _buckets([weight.grad for weight in own if weight.grad is not None]):
                _add_up(bucket)


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
    """A context in which this process deals nothing out and asks nobody, as the others are not there."""
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


# ---- words that are left for others, who may ask for them sooner or later


def tell(key: str, word: str) -> None:
    """Leave a word for the other processes; nothing where there are none."""
    if launched().count > 1:
        with _talking():
            _store().set(_PREFIX + key, word)


def hear(key: str) -> str:
    """The word that another process leaves under a key, once it is there.

    Raises:
        OtherProcessEnded: one has failed meanwhile.
    """
    store = _store()
    while True:
        try:
            store.wait([_PREFIX + key], LOOK)
        except RuntimeError as error:
            with _talking():
                if store.check([_PREFIX + _FAILED]):
                    raise OtherProcessEnded(str(error)) from error
            continue
        return str(store.get(_PREFIX + key).decode())


def is_first_to_fail() -> bool:
    """Whether no other process has failed before this one: the one that says why."""
    if launched().count == 1:
        return True
    if not _group.cache_info().currsize:
        return launched().is_main  # so far all processes have done the same
    try:
        return int(_store().add(_PREFIX + _FAILED, 1)) == 1
    except RuntimeError:  # the store has gone with its process
        return False


# ---- the launcher


def processes_flag() -> str:
    """The launcher's word for the number of processes."""
    is_accelerate = any(name.startswith("ACCELERATE_") for name in os.environ)
    return "--num_processes" if is_accelerate else "--nproc_per_node"


def check_launch() -> None:
    """Refuse an environment that no launcher gives.

    Raises:
        InputError: which variable is wrong.
    """
    numbers = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK")}
    for name, text in numbers.items():
        if text is not None and not text.isdecimal():
            raise InputError(
                name, f"{text!r} is no number; start with accelerate launch or torchrun", kind="environment"
            )
    one = launched()
    if numbers["RANK"] is None and one.count > 1:
        message = f"{one.count} processes, but RANK is not set; start with accelerate launch or torchrun"
        raise InputError("WORLD_SIZE", message, kind="environment")
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        message = "DeepSpeed's engine is not used; give --use_fsdp, or the processes alone, as in properties/accelerate"
        raise InputError("use_deepspeed", message, kind="conflict")
    if one.rank >= max(one.count, 1) or one.count < 1:
        message = f"process {one.rank} of {one.count} cannot be; start with accelerate launch or torchrun"
        raise InputError("RANK", message, kind="environment")


def refuse_several(what: str) -> None:
    """Refuse a command that one process runs.

    Args:
        what: names it.

    Raises:
        InputError: a launcher has started several.
    """
    count = launched().count
    if count > 1:
        flag = processes_flag()
        message = f"{what} runs in one process, and {count} were started; give {flag}=1, or start it without a launcher"
        raise InputError(flag.removeprefix("--"), message, kind="environment")


def check_devices() -> None:
    """Refuse more processes on this machine than it has GPUs, where it has any that may be used.

    Raises:
        InputError: with how many there are.
    """
    import torch

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if gpus and here > gpus:
        flag = processes_flag()
        message = f"{here} processes on a machine with {gpus} GPUs; give {flag}={gpus} for each machine"
        raise InputError(flag.removeprefix("--"), message, kind="environment")


def asks_for_shards() -> bool:
    """Whether the launcher asks for FSDP."""
    return _is_on("ACCELERATE_USE_FSDP")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


# ---- torch


@cache
def _group() -> Any:
    """The group over which plain data go; all processes make it at once, on first use."""
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=_is_on("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def _store() -> Any:
    """What the launcher keeps words in, which outlives a process."""
    from torch.distributed.distributed_c10d import _get_default_store

    _group()
    return _get_default_store()


@contextmanager
def _talking() -> Iterator[None]:
    """A context in which a lost connection is what it means."""
    try:
        yield
    except RuntimeError as error:  # torch's errors of groups and stores
        raise OtherProcessEnded(str(error)) from error


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type and device after another, as many together as :data:`BUCKET` allows."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for own in by_kind.values():
        bucket: list[torch.Tensor] = []
        for tensor in own:
            if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


def _add_up(bucket: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one type and device by their sums over all processes."""
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat, group=_group() if flat.device.type == "cpu" else None)
    for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(total.view_as(tensor))
