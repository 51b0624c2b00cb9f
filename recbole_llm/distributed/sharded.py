"""Tensors of which each process holds a part, and whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def whole_tensor(value: Any) -> Any:
    """A tensor, put together from all processes if it is sharded; other values are returned unchanged."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def sharded_like(value: Tensor, weight: Tensor) -> Tensor:
    """A tensor sharded as a weight is, where that is and the shapes are equal."""
    if not hasattr(weight, "full_tensor") or value.shape != weight.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    dealt: Any = weight
    found: Tensor = distribute_tensor(value.to(weight.device), dealt.device_mesh, dealt.placements)
    return found
