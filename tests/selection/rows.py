"""What the tests of row inputs and row selection share: how many rows there are, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recbole_llm.selection.pool import Pool
from recbole_llm.selection.row_inputs import RowInputs

N_ROWS = 24
Make = Callable[..., tuple[Any, Any, Any]]


def inputs_of(config: Any, rows: Any, model: Any, places: np.ndarray | None = None) -> RowInputs:
    """Of all rows by default."""
    places = np.arange(len(rows.train)) if places is None else places
    examples = model.token_pairs(rows.train.inter_feat)
    pool = Pool(rows.train, places, rows.valid)
    return RowInputs(model, config, pool, [examples[place] for place in places])
