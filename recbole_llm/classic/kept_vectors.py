"""The item vectors that an LLMEmb run leaves in its folder, read for other models of the same items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recbole_llm.errors import InputError

VECTORS = "item_vectors.npz"


def write_item_vectors(folder: Path, tokens: Sequence[str], vectors: np.ndarray) -> None:
    """Keep vectors by the items' outside ids.

    Args:
        folder: folder of the run.
        tokens: outside ids of every item, the padding's first.
        vectors: float32 [items, p], the padding's first.
    """
    np.savez(folder / VECTORS, item_id=np.array([str(token) for token in tokens[1:]]), vectors=vectors[1:])


def read_item_vectors(folder: Path, tokens: Sequence[str], key: str) -> np.ndarray:
    """The kept vectors of a data set's items, whatever their order.

    Args:
        folder: folder of the run.
        tokens: outside ids of every item, the padding's first.
        key: the setting that names the folder, for messages.

    Returns:
        float32 [items, p]; zeros for the padding and for an item that the run did not have.

    Raises:
        InputError: the file cannot be read, or it knows none of the items.
    """
    file = folder / VECTORS
    try:
        with np.load(file, allow_pickle=False) as kept:
            names, vectors = kept["item_id"].tolist(), kept["vectors"]
        table = np.zeros((len(tokens), vectors.shape[1]), dtype=np.float32)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            key, f"{file} is not what a run of LLMEmb leaves ({error}); run LLMEmb again", kind="file"
        ) from error
    row_of = {name: row for row, name in enumerate(names)}
    known = [(item, row_of[token]) for item, token in enumerate(map(str, tokens)) if item and token in row_of]
    if not known:
        raise InputError(key, f"{file} knows none of the items; give a run on the same data set", kind="data")
    items, rows = zip(*known, strict=True)
    table[list(items)] = vectors[list(rows)]
    return table
