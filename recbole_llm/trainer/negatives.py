"""Wrong answers to training prompts: items or texts, and which of them are valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.hashing import hash_arrays, hash_json
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective.negatives import false_negative_mask
from recbole_llm.prompt.titles import normalize_title
from recbole_llm.stages import stage_seed
from recbole_llm.trainer.preference_loss import CrossRowMask

if TYPE_CHECKING:
    from recbole_llm.selection.training_rows import TrainingRows


@dataclass(frozen=True)
class WrongAnswers:
    """The wrong answers of some rows: items, or texts that need be no title.

    Attributes:
        items: int64 [rows, k], representatives of their titles; 0 if there is none.
        texts: one for each row, empty if there is none; None where the answers are ``items``.
    """

    items: np.ndarray
    texts: list[str] | None = None

    @property
    def mask(self) -> np.ndarray:
        """Where there is one: bool [rows, k]."""
        found: np.ndarray = self.items > 0 if self.texts is None else np.array([[bool(text)] for text in self.texts])
        return found

    @property
    def digest(self) -> str:
        """What tells them from others."""
        return hash_arrays(self.items) if self.texts is None else hash_json(self.texts)

    def token_ids(self, model: BIGRec, right: Sequence[list[int]]) -> list[list[list[int]]]:
        """Token ids by column and row; the right answer, which has no effect, if one is missing."""
        if self.texts is not None:
            found = [
                model.prompts.title_response(text) if text else own for text, own in zip(self.texts, right, strict=True)
            ]
            return [found]
        return [
            [model.response(int(item)) if item else own for item, own in zip(items, right, strict=True)]
            for items in self.items.T
        ]


def known_items(model: BIGRec, rows: TrainingRows, of_user: bool = False) -> list[list[int]]:
    """Items that are no wrong answers to a row, besides its target.

    Validation and test items are not looked at.

    Args:
        model: its catalogue and config.
        rows: the training rows.
        of_user: whether they are, beside the row's history, all that its user took before the split.

    Returns:
        For each row.
    """
    if not of_user:
        return rows.histories
    taken: dict[int, list[int]] = {}
    for user, item in model.pairs_before_split.tolist():
        taken.setdefault(user, []).append(item)
    users = rows.readable[model.USER_ID].tolist()
    return [[*history, *taken.get(user, ())] for history, user in zip(rows.histories, users, strict=True)]


def draw_negatives(
    model: BIGRec,
    rows: TrainingRows,
    kind: str,
    count: int,
    known: Sequence[Sequence[int]] | None = None,
    draw: int = 0,
) -> np.ndarray:
    """Wrong answers of each row, drawn by the row's own generator, independent of other rows.

    Items that share a title count as one. None is the target, known, or drawn twice; a row with fewer others has fewer.

    Args:
        model: its catalogue, its index, its candidates and its seed.
        rows: the training rows.
        kind: ``random``, ``popular`` (by training count), ``similar`` (titles nearest to the target's) or ``in_prompt``
            (others of the candidates that the prompt lists).
        count: how many, k.
        known: items that are none, for each row; the histories by default.
        draw: number of the draw, where there are several.

    Returns:
        int64 [rows, k], items that are their titles' representatives; 0 behind a row's last.
    """
    known = rows.histories if known is None else known
    targets = rows.readable[model.ITEM_ID].numpy()
    if kind == "similar":
        return _nearest(model, targets, known, count)
    every, found = np.flatnonzero(model.catalog.rankable), np.zeros((len(targets), count), dtype=np.int64)
    shares = _popularity(model) if kind == "popular" else None
    listed = _listed(model, rows) if kind == "in_prompt" else None
    for row, sample in enumerate(rows.readable[SAMPLE_ID].tolist()):
        pool = every if listed is None else np.unique(listed[row])
        pool = pool[_may_stand(model, pool, int(targets[row]), known[row])]
        pool = pool if shares is None else pool[shares[pool] > 0]
        weights = None if shares is None or not len(pool) else shares[pool] / shares[pool].sum()
        again = (draw,) if draw else ()
        generator = np.random.default_rng(stage_seed(model.config["seed"], "negatives", kind, sample, *again))
        n_drawn = min(count, len(pool))
        found[row, :n_drawn] = generator.choice(pool, n_drawn, replace=False, p=weights)
    return found


def own_texts(model: BIGRec, rows: TrainingRows) -> list[str]:
    """What the model itself answers to each row, greedily (SPRec, arXiv 2412.09243), and otherwise as in evaluation."""
    with model.searching(num_beams=1):
        return model.free_answers.best([prompt for prompt, _ in rows.examples], rows.histories)


def grounded(model: BIGRec, rows: TrainingRows, texts: Sequence[str], known: Sequence[Sequence[int]]) -> WrongAnswers:
    """The title nearest to each text; none where it is the target's or known."""
    nearest = model.index.search(model.ground(texts), 1)[1]
    targets = rows.readable[model.ITEM_ID].tolist()
    stand = [_may_stand(model, own, target, items) for own, target, items in zip(nearest, targets, known, strict=True)]
    return WrongAnswers(np.where(np.array(stand).reshape(nearest.shape), nearest, 0).astype(np.int64))


def as_they_are(
    model: BIGRec, rows: TrainingRows, texts: Sequence[str], known: Sequence[Sequence[int]]
) -> WrongAnswers:
    """The titles that the texts name, real or not; none where one is empty, or that of the target or known."""
    titles, targets = model.catalog.titles, rows.readable[model.ITEM_ID].tolist()
    kept = []
    for text, target, items in zip(texts, targets, known, strict=True):
        answer = model.prompts.layout.title_of(text)
        names = {normalize_title(titles[item] or "") for item in (*items, target)}
        kept.append("" if normalize_title(answer) in names else answer)
    return WrongAnswers(np.zeros((len(kept), 1), dtype=np.int64), kept)


def contrasts_across(
    model: BIGRec, rows: TrainingRows, negatives: np.ndarray, known: Sequence[Sequence[int]] | None = None
) -> CrossRowMask:
    """Which wrong answers of any row are valid against each row's right one, told of the rows of a step.

    Args:
        model: its catalogue.
        rows: the training rows.
        negatives: int64 [rows, k], their wrong answers; 0 if there is none.
        known: items that are none, for each row; the histories by default.
    """
    titles, targets = model.catalog.representative, rows.readable[model.ITEM_ID].numpy()
    known = rows.histories if known is None else known

    def across(chosen: np.ndarray) -> np.ndarray:
        flat = negatives[chosen].flatten()
        drawn, found = titles[flat], np.zeros((len(chosen), len(flat)), dtype=bool)
        for place, row in enumerate(chosen):
            own = titles[np.array([*known[row], targets[row]], dtype=np.int64)]
            found[place] = (flat > 0) & ~np.isin(drawn, own)
        return found

    return across


def _nearest(model: BIGRec, targets: np.ndarray, known: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """The titles nearest to the targets' that may stand: int64 [rows, count]."""
    found = np.zeros((len(targets), count), dtype=np.int64)
    nearest = model.index.search(model.title_vectors(targets), count + max(map(len, known)) + 1)[1]
    for row, own in enumerate(nearest):
        kept = own[_may_stand(model, own, int(targets[row]), known[row])][:count]
        found[row, : len(kept)] = kept
    return found


def _listed(model: BIGRec, rows: TrainingRows) -> np.ndarray:
    """The titles that each row's prompt lists, by their representatives: int64 [rows, n]."""
    if model.candidates is None:
        raise ValueError("in_prompt: prompts list no candidates")
    found: np.ndarray = model.catalog.representative[model.candidates.of(rows.readable)]
    return found


def _may_stand(model: BIGRec, items: np.ndarray, target: int, known: Sequence[int]) -> np.ndarray:
    catalog = model.catalog
    found: np.ndarray = false_negative_mask(items, target, np.array(known), catalog.representative, catalog.rankable)
    return found


def _popularity(model: BIGRec) -> np.ndarray:
    """Interactions before the split with each title, at its representative. Returns: float64 [items]."""
    items = model.pairs_before_split[:, 1]
    return np.bincount(model.catalog.representative[items], minlength=model.catalog.n_items).astype(np.float64)
