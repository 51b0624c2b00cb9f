"""``rows.parquet``: the result of every test row in every run of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from recbole_llm.report.table import RunResult

NEEDS_PYARROW = "Parquet needs pyarrow, which is not installed; pip install pyarrow"


def has_pyarrow() -> bool:
    """Whether Parquet files can be written."""
    return find_spec("pyarrow") is not None


def write_rows(results: Sequence[RunResult], path: Path) -> Path:
    """Write the test rows of runs as Parquet, one run after the other, so that one alone is held in memory.

    Args:
        results: results of the runs; their folders must be there.
        path: the file.

    Raises:
        InputError: pyarrow is not installed, or a run folder is gone.
    """
    if not has_pyarrow():
        raise InputError("", NEEDS_PYARROW, kind="environment")
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    writer: Any = None
    try:
        for frame in _frames(results):
            rows = Table.from_pandas(frame, preserve_index=False)
            writer = writer or ParquetWriter(path, rows.schema)
            writer.write_table(rows.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    return path


def _frames(results: Sequence[RunResult]) -> Iterator[Any]:
    """The rows of each run, with its model and seed."""
    import pandas as pd  # only here: the rest of a table needs no pandas

    for result in results:
        found = sorted(Path(result.folder).glob("test_*.csv")) if result.folder else []
        if not found:
            where = result.folder or result.model
            raise InputError("", f"{where}: no test_*.csv is there; the run is gone", kind="file")
        texts = {name: str for name in ("user_id", "item_id", "top_items", "answer", "candidates")}
        rows = pd.read_csv(found[0], dtype=texts, keep_default_na=False, na_values={"rank": ""})
        if "rank" in rows:
            rows = rows.astype({"rank": "Int64"})
        rows.insert(0, "seed", pd.array([result.seed] * len(rows), dtype="Int64"))
        rows.insert(0, "model", result.model)
        yield rows
