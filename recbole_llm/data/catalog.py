"""The item catalogue: the title of every item, and the items of a title."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.data.atomic import read_atomic
from recbole_llm.data.columns import check_item_field
from recbole_llm.data.lines import Format, read_header
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.prompt.titles import clean_title

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

logger = logging.getLogger(__name__)

_N_EXAMPLES = 5  # how many items a log line names


class ItemCatalog:
    """The items of one data set with their titles.

    An item without a title can neither be printed in a prompt nor be an answer. Items that share a title cannot be
    told apart by an LLM: the lowest id of each title represents the others, and only representatives are rankable
    (interactions are never remapped).

    Attributes:
        titles: Cleaned title per internal item id, None where the item has none; id 0 is padding and has none.
        tokens: External item id per internal item id, for messages.
        attributes: What else is known of each item, such as its genres.
        has_title: bool [items].
        representative: int64 [items], the lowest id with the same title; an untitled item maps to 0.
        rankable: bool [items], the item has a title and represents itself.
        n_duplicates: Number of titled items that are represented by another one.
    """

    def __init__(
        self,
        titles: Sequence[str | None],
        *,
        extras: Sequence[str | None] | None = None,
        attributes: Sequence[Sequence[str]] | None = None,
        tokens: Sequence[str] | None = None,
        source: str = "the catalogue",
    ) -> None:
        """Build the catalogue from plain data.

        Args:
            titles: Title per internal item id, cleaned here and nowhere else; index 0 is the padding item and must be
                None or blank.
            extras: What is appended to each title in parentheses, to make titles distinct; None or blank for nothing.
            attributes: What else is known of each item, such as its genres; none by default.
            tokens: External item id per item; the internal ids by default.
            source: Where the titles come from, for messages.

        Raises:
            InputError: No item has a title.
            ValueError: The padding item has a title, or the sequences differ in length.
        """
        self.titles: list[str | None] = [clean_title(title or "") or None for title in titles]
        if extras is not None:
            pairs = zip(self.titles, [clean_title(extra or "") for extra in extras], strict=True)
            self.titles = [f"{title} ({extra})" if title and extra else title for title, extra in pairs]
        self.tokens = [str(token) for token in (range(len(titles)) if tokens is None else tokens)]
        self.attributes = [list(values) for values in ([()] * len(titles) if attributes is None else attributes)]
        if not len(self.titles) == len(self.tokens) == len(self.attributes):
            raise ValueError("titles, attributes and tokens must have one entry per item")
        if self.titles and self.titles[0] is not None:
            raise ValueError("item id 0 is padding and cannot have a title")

        self._id_of_title: dict[str, int] = {}
        for item_id, title in enumerate(self.titles):
            if title is not None:
                self._id_of_title.setdefault(title, item_id)
        if not self._id_of_title:
            raise InputError(
                "title_field", f"every title of {source} is empty; set it to an item field that holds text", kind="data"
            )

        self.has_title = np.array([title is not None for title in self.titles])
        first = [0 if title is None else self._id_of_title[title] for title in self.titles]
        self.representative = np.array(first, dtype=np.int64)
        self.rankable = self.has_title & (self.representative == np.arange(len(self.titles)))
        self.n_duplicates = int(self.has_title.sum() - self.rankable.sum())
        self._log_gaps(source)

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, title_field: str, title_with: str | None = None, text_fields: Sequence[str] = ()
    ) -> ItemCatalog:
        """Read the catalogue from a RecBole data set, before or after its `build()`.

        Args:
            dataset: A `recbole.data.dataset.Dataset` with item columns; `token` and `token_seq` fields can be read.
            title_field: The item field that holds the title.
            title_with: An item field whose value is appended to the title in parentheses, to make titles distinct
                (`Toy Story (1995)`); nothing is appended where it is missing.
            text_fields: Further item fields, for `attributes`: a `token` is one value, a `token_seq` one per word.

        Raises:
            InputError: A field does not exist or is not text, or no item has a title.
        """
        titles, extras, attributes = read_texts(dataset, title_field, title_with, text_fields)
        return cls(
            titles,
            extras=extras,
            attributes=attributes,
            tokens=dataset.field2id_token[dataset.iid_field],
            source=f"item field {title_field!r} of data set {dataset.dataset_name!r}",
        )

    @property
    def n_items(self) -> int:
        """Number of items, the padding item included: the width of a score matrix."""
        return len(self.titles)

    def lookup(self, title: str) -> int | None:
        """The lowest item id with this title, or None. A generated text goes through `clean_answer` first."""
        return self._id_of_title.get(clean_title(title))

    def fingerprint(self) -> str:
        """SHA-256 of the titles in item order: equal where item embeddings and answers mean the same items."""
        return hash_json(self.titles)

    def _log_gaps(self, source: str) -> None:
        untitled = np.flatnonzero(~self.has_title)[1:]
        if len(untitled):
            examples = ", ".join(self.tokens[item_id] for item_id in untitled[:_N_EXAMPLES])
            logger.warning(
                "%d of %d items have no title in %s and are left out of prompts and rankings (first: %s)",
                *(len(untitled), self.n_items - 1, source, examples),
            )
        if self.n_duplicates:
            sizes = Counter(self.representative[self.has_title].tolist()).values()
            n_shared = sum(size for size in sizes if size > 1)
            logger.info("%d items share a title; the lowest id of each title represents them", n_shared)


@lru_cache(maxsize=1)
def _ids_of_file(file: Path, form: Format, field: str, changed: tuple[int, int]) -> frozenset[str]:
    """The ids of an ``.item`` file, none if it cannot be read; read once for all models of a table.

    Args:
        file: the file.
        form: separator, quotes and encoding of the file.
        field: name of the column of ids.
        changed: when it was, and its size.
    """
    try:
        return frozenset(read_atomic(file, form, [field]).columns[field])
    except (InputError, KeyError):  # of a file that is not needed
        return frozenset()


def note_unread_items(dataset: Dataset) -> None:
    """Note that a model ranks fewer items than models beside it may: those of an ``.item`` file that it does not load.

    A table loads the columns of all its models for each of them, so a model has another catalogue there than alone.

    Args:
        dataset: A RecBole data set of ours, read.
    """
    file = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if dataset.item_feat is not None or not file.is_file():
        return
    state = file.stat()
    form = Format.from_config(dataset.config)
    found = _ids_of_file(file, form, dataset.iid_field, (state.st_mtime_ns, state.st_size))
    more = found - set(dataset.field2token_id[dataset.iid_field])
    if more:
        note = (
            f"{file.name}: {len(more):,} items have no interaction; {dataset.config['model']} does not load the file "
            "and ranks the others alone, where beside a model of titles all are ranked; name item: [item_id] in "
            "load_col to rank them here"
        )
        dataset.reading.notes.append((logging.WARNING, note))


def read_categories(dataset: Dataset, field: str) -> list[list[str]] | None:
    """The categories of every internal item id, none where they are unknown.

    Args:
        dataset: A RecBole data set; `token` (one category) and `token_seq` (one per word) fields can be read.
        field: The item field that states them.

    Returns:
        None if the field is in the .item file but was not loaded.

    Raises:
        InputError: The field does not exist or is not text.
    """
    loaded = dataset.item_feat is not None and field in dataset.item_feat.columns
    return read_words(dataset, field, "category_field") if loaded or field not in _item_fields(dataset) else None


def read_texts(
    dataset: Dataset, title_field: str, title_with: str | None, text_fields: Sequence[str]
) -> tuple[Sequence[Any], Sequence[Any] | None, list[list[str]] | None]:
    """Titles, what is appended to them, and further texts of a data set's items, by item; None where none is asked for.

    See :meth:`ItemCatalog.from_dataset`.
    """
    titles = _read_text(dataset, title_field, "title_field")
    extras = None if title_with is None else _read_text(dataset, title_with, "title_with")
    columns = [read_words(dataset, field, "item_text_fields") for field in text_fields]
    return titles, extras, [sum(values, []) for values in zip(*columns, strict=True)] if columns else None


def _read_text(dataset: Dataset, field: str, setting: str) -> list[str]:
    """One text per internal item id from a `token` or `token_seq` field, "" where it is missing."""
    return [" ".join(words) for words in read_words(dataset, field, setting)]


def read_words(dataset: Dataset, field: str, setting: str) -> list[list[str]]:
    """The words of every item's `token` (one) or `token_seq` field; none where it is missing.

    RecBole gives a missing value id 0 in both types, and pads a `token_seq` with 0 once it is a tensor.
    """
    item_feat = dataset.item_feat
    loaded = {name: dataset.field2type[name].value for name in (() if item_feat is None else item_feat.columns)}
    check_item_field(setting, field, dataset.dataset_name, {**_item_fields(dataset), **loaded}, loaded)
    return words_of(dataset, item_feat, field)


def words_of(dataset: Dataset, feat: Any, field: str) -> list[list[str]]:
    """The words of a text field in each row of a table of items or users, loaded."""
    words = dataset.field2id_token[field]
    rows = (np.atleast_1d(row).astype(np.int64) for row in np.asarray(feat[field]))
    return [[words[word_id] for word_id in row if word_id] for row in rows]


def _item_fields(dataset: Dataset) -> dict[str, str]:
    """Names and types in the header of the data set's `.item` file, loaded or not."""
    file = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    return read_header(file, Format.from_config(dataset.config)) if file.is_file() else {}
