r"""Amazon Reviews 2023 as atomic files with titles.

    python -m recbole_llm.data.amazon --ratings=Video_Games.csv.gz --metadata=meta_Video_Games.jsonl.gz \
        --name=amazon-games-2023 --out=dataset

The files are those that https://amazon-reviews-2023.github.io offers per category: the ratings alone
(``user_id,parent_asin,rating,timestamp``, times in milliseconds) and the items' metadata, gzipped or not.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import html
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from tqdm import tqdm

from recbole_llm.errors import InputError
from recbole_llm.logs import console_log
from recbole_llm.prompt.titles import clean_title

USER, ITEM, RATING, TIME = RATING_COLUMNS = ("user_id", "parent_asin", "rating", "timestamp")
INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEM_HEADER = ("item_id:token", "title:token", "brand:token", "categories:token_seq", "main_category:token")
NO_CATEGORY = "Unknown"  # RecBole trips over an empty token_seq
# What tables write for a missing value, as pandas knows it: no name of a product.
READ_AS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_CHUNK = 500_000  # lines between two steps of the progress bar; rows of ratings read at a time
log = logging.getLogger(__name__)


def import_amazon(
    ratings: str | Path, metadata: str | Path, name: str, out: str | Path, k_core: int = 10, progress: bool = True
) -> Path:
    """Write ``<out>/<name>/<name>.inter`` and ``.item``; the same input gives the same bytes.

    Interactions come in the order of time, equal times in the order of the ratings file. Exact duplicates are dropped,
    then interactions of items without a title, then those outside the k-core.

    Args:
        ratings: csv file of the interactions.
        metadata: jsonl file of the items.
        name: name of the data set.
        out: folder of data sets.
        k_core: fewest interactions of a user and of an item; 1 keeps all.
        progress: whether to show progress bars.

    Returns:
        The folder of the data set.

    Raises:
        InputError: a file or column is missing, a line cannot be read, or no interaction is left.
    """
    if k_core < 1:
        raise InputError(f"k_core: {k_core} is not allowed; give an integer >= 1")
    if not name or name != Path(name).name:
        raise InputError(f"name: '{name}' is no name of a folder; give one without a path, like amazon-games-2023")
    rows = read_ratings(ratings, progress)
    items = read_items(metadata, set(rows[ITEM].cat.categories), progress)
    rows = _with_title(rows, items)
    rows = rows[in_k_core(rows[USER].cat.codes.to_numpy(), rows[ITEM].cat.codes.to_numpy(), k_core)]
    if rows.empty:
        raise InputError(f"no interaction of {ratings} is left; lower k_core (now {k_core})", kind="data")
    kept = sorted(rows[ITEM].unique())
    folder = Path(out) / name
    folder.mkdir(parents=True, exist_ok=True)
    _write(rows, INTER_HEADER, folder / f"{name}.inter")
    _write(pd.DataFrame([(item, *items[item]) for item in kept]), ITEM_HEADER, folder / f"{name}.item")
    counts = (len(rows), rows[USER].nunique(), len(kept))
    log.info("%s: %d interactions of %d users and %d items in the %d-core.", folder, *counts, k_core)
    return folder


def read_ratings(file: str | Path, progress: bool = True) -> pd.DataFrame:
    """The interactions in the order of time, equal times in the order of the file, each distinct row once.

    Returns:
        The columns ``user_id`` and ``parent_asin`` (categories), ``rating`` and ``timestamp`` (milliseconds).

    Raises:
        InputError: the file or a column is missing, or a value is no number.
    """
    with _opened(file, progress) as (source, move_bar):
        header = next(csv.reader([source.readline().decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
        missing = [column for column in RATING_COLUMNS if column not in header]
        if missing:
            raise InputError(
                f"{file}: no column {', '.join(missing)}; it has {', '.join(header) or 'no columns'}", kind="data"
            )
        kinds = {USER: "category", ITEM: "category", RATING: np.float64, TIME: np.int64}
        options = {"names": header, "dtype": kinds, "index_col": False}
        chunks = []
        try:
            with pd.read_csv(source, **options, keep_default_na=False, chunksize=_CHUNK) as reader:
                for chunk in reader:
                    chunks.append(chunk)
                    move_bar()
        except (ValueError, OverflowError) as error:  # pandas' own are ValueErrors
            raise InputError(f"{file}: not readable as ratings: {' '.join(str(error).split())}", kind="data") from error
    if not sum(map(len, chunks)):
        raise InputError(f"{file}: holds no ratings", kind="data")
    rows = pd.DataFrame({column: _joined([chunk[column] for chunk in chunks]) for column in RATING_COLUMNS})
    if (rows[[USER, ITEM]] == "").any(axis=None):
        raise InputError(f"{file}: some {USER} or {ITEM} is empty; remove these rows", kind="data")
    rows = rows.sort_values(TIME, kind="stable", ignore_index=True)
    distinct = rows.drop_duplicates(ignore_index=True)
    log.info("%s: %d ratings, %d exact duplicates dropped.", file, len(rows), len(rows) - len(distinct))
    return distinct


def _joined(parts: list[pd.Series]) -> Any:
    """Parts of one column as one, categories sorted."""
    if isinstance(parts[0].dtype, pd.CategoricalDtype):
        return union_categoricals(parts, sort_categories=True)
    return pd.concat(parts, ignore_index=True)


def read_items(file: str | Path, wanted: Collection[str], progress: bool = True) -> dict[str, tuple[str, ...]]:
    """Title, brand, categories and main category of the wanted items that have a title, each as an atomic file has it.

    Args:
        file: jsonl file; of an item on several lines, the first with a title counts.
        wanted: item ids; what else the file tells is not kept.
        progress: whether to show a progress bar.

    Raises:
        InputError: the file is missing, or a line is no JSON object with a ``parent_asin``.
    """
    items: dict[str, tuple[str, ...]] = {}
    with _opened(file, progress) as (source, move_bar):
        for number, line in enumerate(source, start=1):
            if number % _CHUNK == 0:
                move_bar()
            if not line.strip():
                continue
            try:
                about = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{file}, line {number}: no valid JSON: {' '.join(str(error).split())}", kind="data"
                ) from error
            if not isinstance(about, dict) or not isinstance(about.get(ITEM), str):
                raise InputError(
                    f"{file}, line {number}: no JSON object with a {ITEM}; give the metadata of the items", kind="data"
                )
            item = about[ITEM]
            if item in wanted and item not in items and (title := clean_text(about.get("title"))):
                brand, main = clean_text(about.get("store")), clean_text(about.get("main_category"))
                items[item] = (title, brand, category_words(about.get("categories")), main)
    return items


def clean_text(value: object) -> str:
    """A text of the metadata on one line, without HTML entities, control characters and outer blanks.

    Returns:
        The text; "" if there is none, or one that stands for a missing value, such as ``nan``.
    """
    if not isinstance(value, str):
        return ""
    text = _CONTROL_CHARACTERS.sub(" ", html.unescape(value))
    text = clean_title(text.encode("utf-8", "replace").decode("utf-8"))  # half a character cannot be written
    return "" if text in READ_AS_MISSING else text


def category_words(categories: object) -> str:
    """Categories as a ``token_seq``, each once; blanks inside a name become ``_``, since a blank ends a token."""
    names = [clean_text(name) for name in categories] if isinstance(categories, list) else []
    words = ("_".join(name.split()) for name in names if name)
    return " ".join(dict.fromkeys(words)) or NO_CATEGORY


def in_k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Which interactions remain when users and items with fewer than ``k`` are dropped until nothing changes.

    Args:
        users: int [interactions], >= 0.
        items: int [interactions], >= 0.
        k: fewest interactions, repeated ones counted each.

    Returns:
        bool [interactions]. The k-core is unique: the order of dropping does not matter.
    """
    kept = np.ones(len(users), dtype=bool)
    while True:
        often = [np.bincount(ids[kept], minlength=ids.max(initial=0) + 1)[ids] >= k for ids in (users, items)]
        remain = kept & often[0] & often[1]
        if remain.sum() == kept.sum():
            return kept
        kept = remain


def _with_title(rows: pd.DataFrame, items: Collection[str]) -> pd.DataFrame:
    """The interactions of items with a title."""
    ids = rows[ITEM].cat.categories
    has_title = np.fromiter((item in items for item in ids), dtype=bool, count=len(ids))
    if not has_title.any():
        raise InputError(
            "the metadata has no title of any rated item; give both files of the same category", kind="data"
        )
    kept = rows[has_title[rows[ITEM].cat.codes.to_numpy()]]
    lost = (len(ids) - int(has_title.sum()), len(rows) - len(kept))
    log.info("%d items have no title; they and their %d interactions are dropped.", *lost)
    return kept


def _write(table: pd.DataFrame, header: Sequence[str], file: Path) -> None:
    """An atomic file, which has no quoting."""
    table.to_csv(
        file,
        sep="\t",
        header=list(header),
        index=False,
        quoting=csv.QUOTE_NONE,
        lineterminator="\n",
        encoding="utf-8",
    )


@contextmanager
def _opened(file: str | Path, progress: bool) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file, unpacked if it is gzipped, and what moves its progress bar to where reading stands."""
    try:
        raw = open(file, "rb")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", kind="file") from error
    size = os.fstat(raw.fileno()).st_size
    with raw, tqdm(total=size, desc=Path(file).name, unit="B", unit_scale=True, disable=not progress) as bar:
        gzipped = raw.peek(2)[:2] == b"\x1f\x8b"

        def move_bar() -> None:
            bar.update(raw.tell() - bar.n)

        try:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if gzipped else raw, move_bar
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{file}: damaged or cut off: {error}; download it again", kind="file") from error
        move_bar()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns: exit status, 0, or 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llm.data.amazon", description="Amazon Reviews 2023 as atomic files with titles."
    )
    parser.add_argument("--ratings", required=True, help="csv file: user_id,parent_asin,rating,timestamp")
    parser.add_argument(
        "--metadata", required=True, help="jsonl file of the items: parent_asin, title, categories, ..."
    )
    parser.add_argument("--name", required=True, help="name of the data set, such as amazon-games-2023")
    parser.add_argument("--out", default="dataset", help="folder of data sets (default: dataset)")
    parser.add_argument(
        "--k_core", type=int, default=10, help="fewest interactions of a user and an item (default: 10)"
    )
    wanted = parser.parse_args(argv)
    try:
        with console_log():
            import_amazon(wanted.ratings, wanted.metadata, wanted.name, wanted.out, wanted.k_core)
    except InputError as error:
        print(f"recbole-llm: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
