"""How a finished run numbers users and items, so that its weights mean the same ones when its data are read again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.data.catalog import read_texts
from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.data.split_rows import Rows

FILE = "ids.json"
log = logging.getLogger(__name__)
Texts = tuple[str, str | None, Sequence[str]]
"""The fields of items' texts: of titles, of what is appended to them, of further texts."""
_N_EXAMPLES = 3  # how many ids a message names
_AS_TRAINED = "give the data as they were, or train again"


@dataclass(frozen=True)
class Numbering:
    """Outside ids by internal number, and what else tells whether weights fit a data set.

    RecBole numbers by first appearance, so the same interactions in another order get other numbers.

    Attributes:
        ids: ids of users and of items, by the name of their field; number 0 is the padding.
        columns: a digest of the values of every other column of texts that a model of RecBole's may learn from.
        rows: :meth:`recbole_llm.data.split_rows.Rows.evaluated` of the run.
        texts: of each item, by number, its title and a digest of its other texts, where the LLM is built of them.
    """

    ids: Mapping[str, Sequence[str]]
    columns: Mapping[str, str]
    rows: str
    texts: Sequence[Sequence[str]] = ()

    @classmethod
    def of(cls, rows: Rows, with_columns: bool, digest: str, with_texts: Texts | None = None) -> Numbering:
        """The numbering of a run.

        Args:
            rows: rows of the run.
            with_columns: whether its model learns from columns by the numbers of their values.
            digest: digest of the rows.
            with_texts: the fields of the texts that its LLM is built of, if it is.
        """
        ids = {field: list(map(str, tokens)) for field, tokens in ids_of(rows.whole).items()}
        return cls(ids, _columns(rows.train) if with_columns else {}, digest, _texts(rows.whole, with_texts))

    def write(self, folder: Path) -> None:
        """Write ``ids.json`` into a run folder."""
        facts = {"ids": dict(self.ids), "columns": dict(self.columns), "rows": self.rows}
        facts |= {"texts": self.texts} if self.texts else {}
        write_json(folder / FILE, {**facts, "digest": hash_json(facts)})

    @classmethod
    def read(cls, folder: Path) -> Numbering | None:
        """What :meth:`write` wrote; None for a run from before there was such a file.

        Raises:
            ValueError: the file is not as it was written.
        """
        if not (folder / FILE).is_file():
            return None
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if hash_json({name: value for name, value in facts.items() if name != "digest"}) != facts["digest"]:
            raise ValueError(f"{FILE} is not as it was written")
        return cls(facts["ids"], facts["columns"], facts["rows"], facts.get("texts", ()))

    def check_known(self, whole: Dataset, fields: Sequence[str], what: str) -> None:
        """Refuse users or items that the run did not have, where its weights have no entry for them.

        Args:
            whole: the data set as it is now, numbered by :attr:`ids`.
            fields: the field of users, that of items, or both.
            what: the model whose weights these are, for messages.

        Raises:
            InputError: how many there are, and the first of them.
        """
        for field in fields:
            new = list(map(str, whole.field2id_token[field][len(self.ids[field]) :]))
            if new:
                first = ", ".join(f"'{token}'" for token in new[:_N_EXAMPLES])
                kind = "users" if field == whole.uid_field else "items"
                message = (
                    f"'{whole.dataset_name}' has {len(new):,} {kind} that this run was not trained with (first: "
                    f"{first}), and {what} knows no others; {_AS_TRAINED}"
                )
                raise InputError("dataset", message, kind="data")

    def check_columns(self, rows: Rows, are_read: bool, what: str) -> None:
        """Refuse columns whose values are numbered otherwise than when a model of RecBole's learned from them.

        Args:
            rows: rows of the data set as it is now.
            are_read: whether the model may read columns; one that reads none gets a warning.
            what: the model, for messages.

        Raises:
            InputError: the first of them.
        """
        now = _columns(rows.train)
        if not are_read:
            changed = [name for name, digest in self.columns.items() if now.get(name) != digest]
            if changed:
                told = ", ".join(f"'{name}'" for name in changed)
                log.warning(
                    "%s of '%s' changed since the training; %s reads none of it", told, rows.whole.dataset_name, what
                )
            return
        for name, digest in self.columns.items():
            if now.get(name) != digest:
                message = (
                    f"column '{name}' of '{rows.whole.dataset_name}' holds other values than this run was trained "
                    f"with, or the same in another order; {_AS_TRAINED}"
                )
                raise InputError("dataset", message, kind="data")

    def check_texts(self, whole: Dataset, fields: Texts) -> None:
        """Refuse other titles or texts of items than those that an LLM was built of.

        Args:
            whole: the data set as it is now, numbered by :attr:`ids`.
            fields: the fields of these texts.

        Raises:
            InputError: how many items have others, and the first of them with their titles.
        """
        now, tokens = _texts(whole, fields), whole.field2id_token[whole.iid_field]
        changed = [item for item, text in enumerate(self.texts) if list(text) != now[item]]
        if changed:
            first = ", ".join(
                f"'{tokens[item]}' was '{self.texts[item][0]}', is '{now[item][0]}'" for item in changed[:_N_EXAMPLES]
            )
            message = (
                f"{len(changed):,} items of '{whole.dataset_name}' have other titles or texts than this run was "
                f"trained with (first: {first}), and its LLM, llm_path: tiny, is built of them; {_AS_TRAINED}"
            )
            raise InputError("dataset", message, kind="data")

    def check_rows(self, rows: Rows, what: str) -> None:
        """Refuse other interactions than those of the run, where something beside its LLM was trained on them.

        Raises:
            InputError: they differ.
        """
        if rows.evaluated() != self.rows:
            message = (
                f"'{rows.whole.dataset_name}' has other interactions than this run was trained with, and {what}; "
                f"{_AS_TRAINED}"
            )
            raise InputError("dataset", message, kind="data")


def ids_of(dataset: Dataset) -> dict[str, Any]:
    """Outside ids of users and items by their internal numbers, by the name of their field."""
    return {field: dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field)}


def _texts(dataset: Dataset, fields: Texts | None) -> list[list[str]]:
    """Of each item by number its title and a digest of its other texts; none without fields."""
    if fields is None:
        return []
    titles, extras, attributes = read_texts(dataset, *fields)
    own = zip(titles, extras or [""] * len(titles), attributes or [[]] * len(titles), strict=True)
    return [[title or "", hash_json([extra, list(more)])[:16]] for title, extra, more in own]


def _columns(dataset: Dataset) -> dict[str, str]:
    """Digests of the values of all columns of texts but the ids of users and items, in the order of their numbers."""
    own, suffix = ids_of(dataset), dataset.config["LIST_SUFFIX"]
    names = [name for name in dataset.field2id_token if name not in own and not name.endswith(suffix)]
    return {name: hash_json(list(map(str, dataset.field2id_token[name]))) for name in sorted(names)}
