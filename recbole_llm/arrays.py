"""Conversions for functions that compute with NumPy and accept and return tensors too."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import reduce, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeGuard, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

P = ParamSpec("P")

Array: TypeAlias = "ArrayLike | Tensor"
"""What is taken for numbers: an array, a tensor on any device, or a sequence; for ids, a set too."""
ArrayT = TypeVar("ArrayT", np.ndarray, "Tensor")
"""An array, or a tensor: what goes in comes out."""


def to_numpy(values: Array) -> np.ndarray:
    """Gives the array behind an array, a tensor on any device, a sequence or a set; does not copy when it need not.

    bfloat16, which NumPy does not know, becomes float32 (exact). A set is ascending.
    """
    if _is_tensor(values):
        values = values.detach().cpu()
        array: np.ndarray = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
        return array
    return np.asarray(sorted(values) if isinstance(values, (set, frozenset)) else values)


def to_float(values: Array) -> np.ndarray:
    """Like ``to_numpy``, as float32 or float64, whichever represents every value: half precision is widened."""
    array = to_numpy(values)
    if array.dtype == np.float32 or array.dtype == np.float64:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def to_ids(values: Array, n: int, name: str) -> NDArray[np.int64]:
    """Ids as int64, each one of n: NumPy and torch count negative ones from the end.

    Args:
        values: ids, of any shape.
        n: how many there are; valid ids are 0 ... n - 1.
        name: what an id is called in the message.

    Raises:
        ValueError: an id is out of range.
    """
    ids: NDArray[np.int64] = to_numpy(values).astype(np.int64)
    if len(wrong := ids[(ids < 0) | (ids >= n)]):
        raise ValueError(f"{name} {wrong[0]} is out of range: there are {n}, counted from 0")
    return ids


def like(result: np.ndarray, reference: Array) -> Any:
    """Returns ``result`` as what ``reference`` is: an array, or a tensor on the same device."""
    if _is_tensor(reference):
        return sys.modules["torch"].from_numpy(np.ascontiguousarray(result)).to(reference.device)
    return result


def computes_in_torch(
    *names: str, others: tuple[str, ...] = (), wide: bool = False
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Decorator of a function of tensors: it takes arrays and lists too, and then returns arrays.

    Tensors pass as they are, with their graph; what else is given for the parameters named becomes a tensor on the
    device of the first tensor among them. Without a tensor among them every tensor of the result, itself or in a tuple,
    becomes an array. Whole numbers stand for real ones: they become what the real ones beside them are, or float64.

    Args:
        names: Parameters that hold real numbers; None is left as it is.
        others: Those that hold ids, masks or weights, whose number type is their own; None is left as it is.
        wide: Half precision becomes float32 first, and so does the result: where squares, sums or a temperature leave
            the range of half precision.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            bound = signature.bind(*args, **kwargs)
            arguments = bound.arguments
            given = [name for name in (*names, *others) if arguments.get(name) is not None]
            tensors = [arguments[name] for name in given if _is_tensor(arguments[name])]
            for name in given:
                arguments[name] = to_tensor(arguments[name], tensors[0].device if tensors else None)
            real = [name for name in names if arguments.get(name) is not None]
            if len(tensors) < len(given) or not all(arguments[name].is_floating_point() for name in real):
                arguments |= zip(real, _of_one_type([arguments[name] for name in real]), strict=True)
            if wide:
                arguments |= {name: widened(arguments[name]) for name in real}
            result = function(*bound.args, **bound.kwargs)
            if tensors:
                return result
            parts = result if isinstance(result, tuple) else (result,)
            arrays = [to_numpy(part) if _is_tensor(part) else part for part in parts]
            return tuple(arrays) if isinstance(result, tuple) else arrays[0]

        return wrapped

    return decorate


def to_tensor(values: Array, device: torch.device | None = None) -> Tensor:
    """A tensor as it is; of an array, a sequence or a set one of the same type, whatever the array's memory is like."""
    import torch

    return values if _is_tensor(values) else torch.as_tensor(plain(to_numpy(values)), device=device)


def widened(values: Tensor) -> Tensor:
    """The values in float32 or float64: half precision is too coarse for sums and differences."""
    if values.is_floating_point():
        return values.float() if values.element_size() < 4 else values
    return values.double()


def plain(array: np.ndarray) -> np.ndarray:
    """An array whose memory torch can share: it runs forwards, in this machine's byte order, and can be written to."""
    if array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides):
        return array
    return array.astype(array.dtype.newbyteorder("="))


def _of_one_type(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in the widest of their floating types; float64 where none has one."""
    import torch

    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    widest = reduce(torch.promote_types, found) if found else torch.float64
    return [tensor.to(widest) for tensor in tensors]


def _is_tensor(values: object) -> TypeGuard[Tensor]:
    """Tells a torch tensor without importing torch: who has no torch loaded has no tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)
