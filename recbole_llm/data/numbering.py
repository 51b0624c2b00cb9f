"""How a finished run numbers users and items, so that its weights mean the same ones when its data are read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.data.split_rows import Rows

FILE = "ids.json"
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
    """

    ids: Mapping[str, Sequence[str]]
    columns: Mapping[str, str]
    rows: str

    @classmethod
    def of(cls, rows: Rows, with_columns: bool, digest: str) -> Numbering:
        """The numbering of a run.

        Args:
            rows: rows of the run.
            with_columns: whether its model learns from columns by the numbers of their values.
            digest: digest of the rows.
        """
        ids = {field: list(map(str, tokens)) for field, tokens in ids_of(rows.whole).items()}
        return cls(ids, _columns(rows.train) if with_columns else {}, digest)

    def write(self, folder: Path) -> None:
        """Write ``ids.json`` into a run folder."""
        facts = {"ids": dict(self.ids), "columns": dict(self.columns), "rows": self.rows}
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
        return cls(facts["ids"], facts["columns"], facts["rows"])

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

    def check_columns(self, rows: Rows) -> None:
        """Refuse columns whose values are numbered otherwise than when a model of RecBole's learned from them.

        Raises:
            InputError: the first of them.
        """
        now = _columns(rows.train)
        for name, digest in self.columns.items():
            if now.get(name) != digest:
                message = (
                    f"column '{name}' of '{rows.whole.dataset_name}' holds other values than this run was trained "
                    f"with, or the same in another order; {_AS_TRAINED}"
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


def _columns(dataset: Dataset) -> dict[str, str]:
    """Digests of the values of all columns of texts but the ids of users and items, in the order of their numbers."""
    own, suffix = ids_of(dataset), dataset.config["LIST_SUFFIX"]
    names = [name for name in dataset.field2id_token if name not in own and not name.endswith(suffix)]
    return {name: hash_json(list(map(str, dataset.field2id_token[name]))) for name in sorted(names)}
