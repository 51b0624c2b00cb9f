"""Sums of gradients over all processes, many tensors in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recbole_llm.distributed.connection import group, talking

if TYPE_CHECKING:
    import torch

BUCKET = 2**26  # numbers that are sent at once


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their sums over all processes.

    Args:
        tensors: tensors of the same shapes, types and order on all processes.
    """
    with talking():
        for bucket in _buckets(tensors):
            _add_up(bucket)


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
    """Replace tensors of one type and device by their sums."""
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat, group=group() if flat.device.type == "cpu" else None)
    for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(total.view_as(tensor))
