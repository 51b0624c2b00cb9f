"""Another machine's rounding: products and sums are off by a unit of the last place, as their operands' shapes decide.

Two computations of one value round alike only by luck of the processor, whose kernels cut a product of another shape
(more rows, more padding) into other partial sums. ``pytest --rounding=1`` takes that luck away on any machine: a test
that asks two different computations for equal bits fails, while one computation run twice still gives them.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What rounds more than once per element, so that the order of its steps shows.
OPERATIONS = {
    *("mm", "addmm", "addmv", "mv", "dot", "bmm", "baddbmm", "convolution", "_cdist_forward"),
    *("sum", "mean", "logsumexp", "linalg_vector_norm", "native_layer_norm"),
    *("_softmax", "_log_softmax", "_scaled_dot_product_flash_attention_for_cpu"),
}


class OtherRounding(TorchDispatchMode):
    """While it is entered, results are scaled by 1 and a unit of their last place more or less, or left alone.

    Args:
        seed: another number is another machine.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        first = result[0] if isinstance(result, tuple) else result
        if name in OPERATIONS and first.is_floating_point() and not func._schema.is_mutable:
            shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
            step = zlib.crc32(repr((self.seed, name, shapes)).encode()) % 3 - 1
            first.mul_(1 + step * torch.finfo(first.dtype).eps)
        return result
