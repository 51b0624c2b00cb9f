"""SHA-256 of values, arrays and files, in hex: the fingerprints of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 2**20  # bytes of a file in memory at once


def hash_json(value: object) -> str:
    """SHA-256 of JSON data, independent of key order.

    Raises:
        TypeError: a value is not plain data (str, number, bool, None, list or dict of these).
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of the values of arrays, one after the other in row-major order, without their shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ravel(array).data)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types and values of tensors, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {values.dtype} {len(values)}\n".encode())
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_change(folder: Path, digests: Mapping[str, str]) -> str | None:
    """What is no longer as it was in a folder, the first of its files; None where all are.

    Args:
        folder: holds the files.
        digests: what :func:`hash_file` gave, by the file's path in the folder.
    """
    for name, digest in digests.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} has changed"
    return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
