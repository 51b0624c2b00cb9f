"""NumPy inside, NumPy or torch outside: the conversions shared by this package."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def to_numpy(values: Any) -> np.ndarray:
    """Gives the array behind an array, a tensor on any device or a sequence; does not copy when it need not.

    bfloat16, which NumPy does not know, becomes float32 (exact).
    """
    if not _is_tensor(values):
        return np.asarray(values)
    values = values.detach().cpu()
    array: np.ndarray = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return array


def to_float(values: Any) -> np.ndarray:
    """Like ``to_numpy``, as float32 or float64, whichever represents every value: half precision is widened."""
    array = to_numpy(values)
    if array.dtype == np.float32 or array.dtype == np.float64:
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def like(result: np.ndarray, reference: Any) -> Any:
    """Returns ``result`` as what ``reference`` is: an array, or a tensor on the same device."""
    if not _is_tensor(reference):
        return result
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(result)).to(reference.device)


def _is_tensor(values: Any) -> bool:
    """Tells a torch tensor without importing torch: who has no torch loaded has no tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)
