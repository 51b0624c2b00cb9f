"""Number types: of the weights on a device, and of matrix products."""

from __future__ import annotations

import torch

from recbole_llm.llm.settings import AUTO

SAVED = "saved"
"""Value of ``llm_dtype``: as in the files."""


def resolve_dtype(dtype: str, device: torch.device | str) -> str:
    """The number type of weights that is meant.

    Args:
        dtype: value of ``llm_dtype``.
        device: where the weights go.

    Returns:
        ``dtype``; for ``auto``, ``bfloat16`` on a GPU that computes in it, else ``float32``.

    Example:
        >>> resolve_dtype("auto", "cpu"), resolve_dtype("float16", "cpu")
        ('float32', 'float16')
    """
    if dtype != AUTO:
        return dtype
    return "bfloat16" if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def use_tensor_cores(device: torch.device | str) -> None:
    """Let a GPU multiply float32 matrices as TF32: eight times as fast, with ten bits of the fraction."""
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")
