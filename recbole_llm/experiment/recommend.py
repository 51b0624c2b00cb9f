"""Recommendations of a trained model: for users of its data set, or for histories of ids or titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_llm.data.rows import newest
from recbole_llm.errors import InputError
from recbole_llm.evaluation import protocol_of
from recbole_llm.evaluation.reranking import all_scores
from recbole_llm.experiment.asked import Histories, as_histories, as_users, item_lists
from recbole_llm.experiment.seen import without_seen
from recbole_llm.experiment.trained import Trained
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.registry import suggestion

if TYPE_CHECKING:
    from recbole_llm.settings.config import Config

BATCH = 1024  # rows that one of RecBole's models scores at once


def recommend(
    trained: Trained,
    histories: Histories | None = None,
    users: str | Sequence[str] | None = None,
    k: int = 10,
    exclude_seen: bool = False,
) -> pd.DataFrame:
    """The best items after some histories, or for some users.

    Args:
        trained: the model.
        histories: lists of item ids or titles, the oldest first, or one such list.
        users: ids of users, or one; each by all the interactions that the data set has, those of the test included.
        k: items per history or user.
        exclude_seen: leave out the items of the history, or all that the user has had; of an LLM model, those that
            share a title with one of them as well.

    Returns:
        A line per item, the best first: ``query`` (0-based number of the history) or ``user_id``, ``rank`` (1 is best),
        ``item_id``, ``title``, ``score`` (the model's own, larger is better; rewritten where it is re-ranked).

    Raises:
        InputError: the model ranks no items, or a user, an item id or a title is unknown.
    """
    histories = None if histories is None else as_histories(histories)
    names = None if users is None else as_users(users)
    _check(trained, histories, names, k)
    if names is not None:
        asked, column = _rows_of_users(trained, names), ("user_id", np.array(names, dtype=object))
        seen = [trained.seen[user] for user in asked[trained.rows.whole.uid_field].tolist()] if exclude_seen else None
    else:
        lists = item_lists(trained, cast(Histories, histories))
        asked, column = _rows_of_items(trained, lists), ("query", np.arange(len(lists)))
        seen = [np.array(own) for own in lists] if exclude_seen else None
    if seen is not None and trained.config.is_llm:
        seen = [_with_twins(trained, own) for own in seen]
    again = trained.reranking
    depth = k if again is None else max(k, again.ranker.settings.rerank_topn)
    if seen is None:
        ranking = rank_rows(trained, asked, depth)
    else:
        longest = min(depth + max(map(len, seen), default=0), trained.rows.whole.item_num)
        ranking = without_seen(rank_rows(trained, asked, longest), seen, depth)
    if again is not None:
        ranking = again.apply(ranking).first(k)
    return _as_frame(trained, ranking, column)


def _with_twins(trained: Trained, items: np.ndarray) -> np.ndarray:
    """Items and all that share a title with one of them, which an LLM cannot tell apart. Returns: int64 [any]."""
    catalog = trained.catalog
    if catalog is None or not catalog.n_duplicates:
        return items
    titles = catalog.representative[items]
    twins: np.ndarray = np.flatnonzero(np.isin(catalog.representative, titles[titles > 0]))
    return np.union1d(items, twins)


def users_with_rows(trained: Trained) -> list[str]:
    """Outside ids of the users that a model can be asked for, in the order of the data set."""
    dataset = trained.rows.whole
    tokens = dataset.field2id_token[dataset.uid_field]
    if trained.config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return [str(token) for token in tokens[1:]]
    return [str(token) for token in tokens[trained.last_row >= 0]]


def check_asked(
    trained: Trained, histories: Histories | None, users: Sequence[str] | None, places: Sequence[str]
) -> None:
    """Refuse what a model cannot be asked for, all of it before the first answer.

    Args:
        trained: the model.
        histories: as for :func:`recommend`.
        users: as for :func:`recommend`.
        places: what each history is called in a message.

    Raises:
        InputError: see :func:`recommend`.
    """
    histories = None if histories is None else as_histories(histories)
    _check(trained, histories, users, k=1)
    if users is None:
        item_lists(trained, cast(Histories, histories), places)
    else:
        _numbers_of(trained, users)


def _check(trained: Trained, histories: Sequence[Sequence[str]] | None, users: Sequence[str] | None, k: int) -> None:
    protocol, config = protocol_of(trained.config), trained.config
    if (histories is None) == (users is None):
        raise InputError("recommend: give either histories or users", kind="missing")
    if not (histories or users):
        key = "histories" if users is None else "users"
        raise InputError(key, "there are none; give at least one", kind="missing")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError("k", f"{k!r} is not allowed; give an integer >= 1")
    if protocol.has_labels:
        raise InputError(
            f"recommend: {config['model']} predicts clicks on given items and cannot rank the catalogue",
            kind="conflict",
        )
    if protocol.n_candidates and config.is_llm:
        raise InputError(
            f"candidates: this {config['model']} chooses among the titles of its prompt and cannot rank others; train "
            "it "
            "without candidates",
            kind="conflict",
        )
    if histories is not None and config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise InputError(
            f"histories: {config['model']} recommends for its known users only; give users", kind="conflict"
        )


# -------------------------------------------------------------------------------------------------------------- rows


def _rows_of_items(trained: Trained, lists: Sequence[Sequence[int]]) -> Interaction:
    """Rows as the model was trained on, of these histories; the newest items stay.

    They have no user: a model that reads the user of a row (Caser, NPE) shows by asking for the column.
    """
    dataset, config = trained.rows.whole, trained.config
    width = config["MAX_ITEM_LIST_LENGTH"]
    items, lengths = torch.zeros(len(lists), width, dtype=torch.int64), torch.zeros(len(lists), dtype=torch.int64)
    for row, own in enumerate(lists):
        shown = list(own)[-width:]
        items[row, : len(shown)], lengths[row] = torch.tensor(shown), len(shown)
    return Interaction(
        {
            dataset.iid_field + config["LIST_SUFFIX"]: items,
            dataset.item_list_length_field: lengths,
        }
    )


def _rows_of_users(trained: Trained, names: Sequence[str]) -> Interaction:
    """Rows of users by all they did: each one's last row, whose target goes to the end of the history."""
    dataset, config = trained.rows.whole, trained.config
    users = torch.from_numpy(_numbers_of(trained, names))
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return Interaction({dataset.uid_field: users})
    last = torch.from_numpy(trained.last_row)[users]
    return _with_targets(dataset.inter_feat[last], config, dataset.item_list_length_field)


def _numbers_of(trained: Trained, names: Sequence[str]) -> np.ndarray:
    """RecBole's ids of users who have what the model reads. Returns: int64 [users]."""
    dataset = trained.rows.whole
    known = dataset.field2token_id[dataset.uid_field]
    for name in names:
        if not known.get(name):
            raise InputError("users", f"no user has the id '{name}'{suggestion(name, list(known))}", kind="unknown")
    users = np.array([known[name] for name in names], dtype=np.int64)
    if trained.config["MODEL_TYPE"] == ModelType.SEQUENTIAL and (trained.last_row[users] < 0).any():
        name = names[int(np.flatnonzero(trained.last_row[users] < 0)[0])]
        message = f"user '{name}' has fewer than two interactions in the data, too few to recommend from"
        raise InputError("users", message, kind="data")
    return users


def _with_targets(rows: Interaction, config: Config, length_field: str) -> Interaction:
    """Rows whose histories end in what was their target: in the columns of items and in those beside them."""
    suffix, width = config["LIST_SUFFIX"], config["MAX_ITEM_LIST_LENGTH"]
    whole = rows[length_field]  # of presplit files, however long
    lengths = whole.clamp(max=width)
    full = lengths == width
    own = {name: rows[name] for name in rows.columns if not name.endswith(suffix) and name != length_field}
    for name in (name for name in rows.columns if name.endswith(suffix)):
        if name.removesuffix(suffix) not in rows:
            continue
        values = newest(rows[name], whole, width)
        values[full] = values[full].roll(-1, dims=1)  # the oldest goes; what comes round is overwritten
        last = lengths.clamp(max=width - 1)
        values[torch.arange(len(rows)), last] = rows[name.removesuffix(suffix)]
        own[name] = values
    own[length_field] = (lengths + 1).clamp(max=width)
    return Interaction(own)


# ----------------------------------------------------------------------------------------------------------- ranking


@torch.no_grad()
def rank_rows(trained: Trained, asked: Interaction, k: int) -> Ranking:
    """The model's ranking of all items for each row."""
    model, config = trained.model, trained.config
    model.eval()
    if config.is_llm:
        target = trained.rows.whole.iid_field
        named = Interaction({name: asked[name] for name in asked.columns if name != target})
        ranking: Ranking = model.rank(named.to(model.device), k)
        return ranking
    parts = [asked[torch.arange(start, min(start + BATCH, len(asked)))] for start in range(0, len(asked), BATCH)]
    n_items = trained.rows.whole.item_num
    try:
        return Ranking.join([rank_scores(all_scores(model, part.to(model.device), n_items), None, k) for part in parts])
    except KeyError as error:
        raise InputError(
            "histories",
            f"{config['model']} reads the column {error} of every interaction; give users instead",
            kind="conflict",
        ) from error


def _as_frame(trained: Trained, ranking: Ranking, column: tuple[str, np.ndarray]) -> pd.DataFrame:
    row, position = np.nonzero(ranking.top_items)
    items = ranking.top_items[row, position]
    dataset, catalog = trained.rows.whole, trained.catalog
    titles = [catalog.titles[item] if catalog else None for item in items.tolist()]
    name, values = column
    return pd.DataFrame(
        {
            name: values[row],
            "rank": position + 1,
            "item_id": dataset.field2id_token[dataset.iid_field][items],
            "title": titles,
            "score": ranking.top_scores[row, position],
        }
    )
