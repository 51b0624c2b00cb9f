"""NumPy inside, NumPy or torch outside: the conversions shared by this package."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeGuard, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

P = ParamSpec("P")

Array: TypeAlias = "ArrayLike | Tensor"
"""What is taken for numbers: an array, a tensor on any device, or a sequence."""
ArrayT = TypeVar("ArrayT", np.ndarray, "Tensor")
"""An array, or a tensor: what goes in comes out."""


def to_numpy(values: Array) -> np.ndarray:
    """Gives the array behind an array, a tensor on any device or a sequence; does not copy when it need not.

    bfloat16, which NumPy does not know, becomes float32 (exact).
    """
    if _is_tensor(values):
        values = values.detach().cpu()
        array: np.ndarray = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
        return array
    return np.asarray(values)


def to_float(values: Array) -> np.ndarray:
    """Like ``to_numpy``, as float32 or float64, whichever represents every value: half precision is widened."""
    array = to_numpy(values)
    if array.dtype == np.float32 or array.dtype == np.float64:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def like(result: np.ndarray, reference: Array) -> Any:
    """Returns ``result`` as what ``reference`` is: an array, or a tensor on the same device."""
    if _is_tensor(reference):
        return sys.modules["torch"].from_numpy(np.ascontiguousarray(result)).to(reference.device)
    return result


def computes_in_torch(*names: str) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """For a function written for tensors: it takes arrays and lists too, and then answers with arrays.

    Tensors pass as they are, with their graph; what else is given for the parameters named becomes a tensor on the
    device of the first tensor among them. Without a tensor among them every tensor of the result, itself or in a tuple,
    becomes an array. Numbers of Python are float64, as NumPy has them.

    Args:
        names: Parameters that hold arrays; None is left as it is.
    """

    def decorate(function: Callable[P, Any]) -> Callable[P, Any]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
            import torch

            bound = signature.bind(*args, **kwargs)
            given = {name: bound.arguments[name] for name in names if bound.arguments.get(name) is not None}
            tensors = [value for value in given.values() if _is_tensor(value)]
            device = tensors[0].device if tensors else None
            for name, value in given.items():
                if not _is_tensor(value):
                    bound.arguments[name] = torch.as_tensor(np.asarray(value), device=device)
            result = function(*bound.args, **bound.kwargs)
            if tensors:
                return result
            parts = result if isinstance(result, tuple) else (result,)
            arrays = [to_numpy(part) if _is_tensor(part) else part for part in parts]
            return tuple(arrays) if isinstance(result, tuple) else arrays[0]

        return wrapped

    return decorate


def _is_tensor(values: object) -> TypeGuard[Tensor]:
    """Tells a torch tensor without importing torch: who has no torch loaded has no tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)
