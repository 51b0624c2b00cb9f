"""Wrong answers to training prompts: which items they are, and which of them may stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.data.rows import SAMPLE_ID, load_rows, row_pairs
from recbole_llm.llm.generation import beam_search
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective.negatives import false_negative_mask
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole_llm.selection.training_rows import TrainingRows


def draw_negatives(model: BIGRec, rows: TrainingRows, kind: str, count: int) -> np.ndarray:
    """Wrong answers of each row, drawn by its own generator: whatever rows stand beside it.

    Items that share a title count as one. None is the target, in the history, or drawn twice; a row with fewer others
    has fewer. Validation and test items are not looked at.

    Args:
        model: its catalogue, its index and its seed.
        rows: the training rows.
        kind: ``random``, ``popular`` (by training count) or ``similar`` (titles nearest to the target's).
        count: how many, k.

    Returns:
        int64 [rows, k], items that are their titles' representatives; 0 behind a row's last.
    """
    ids, targets = rows.readable[SAMPLE_ID].tolist(), rows.readable[model.ITEM_ID].numpy()
    candidates = np.flatnonzero(model.catalog.rankable)
    found = np.zeros((len(ids), count), dtype=np.int64)
    if kind == "similar":
        n_known = max(map(len, rows.histories)) + 1
        nearest = model.index.search(model.title_vectors(targets), count + n_known)[1]
        for row, own in enumerate(nearest):
            kept = own[_may_stand(model, own, int(targets[row]), rows.histories[row])][:count]
            found[row, : len(kept)] = kept
        return found
    shares = _popularity(model)[candidates] if kind == "popular" else None
    for row, (sample, history) in enumerate(zip(ids, rows.histories, strict=True)):
        allowed = _may_stand(model, candidates, int(targets[row]), history)
        allowed = allowed if shares is None else allowed & (shares > 0)
        n_drawn = min(count, int(allowed.sum()))
        weights = None if shares is None or not n_drawn else shares[allowed] / shares[allowed].sum()
        generator = np.random.default_rng(stage_seed(model.config["seed"], "negatives", kind, sample))
        found[row, :n_drawn] = generator.choice(candidates[allowed], n_drawn, replace=False, p=weights)
    return found


def own_answers(model: BIGRec, rows: TrainingRows) -> np.ndarray:
    """The title nearest to what the model itself answers, greedily (SPRec, arXiv 2412.09243).

    Returns:
        int64 [rows, 1]; 0 where it is the target's or in the history.
    """
    prompts = [prompt for prompt, _ in rows.examples]
    answers = beam_search(
        model.llm,
        prompts,
        eos_token_id=model.backbone.eos_token_id,
        pad_token_id=model.backbone.pad_token_id,
        forbidden_token_ids=model.backbone.forbidden_token_ids,
        num_beams=1,
        max_new_tokens=model.generation.max_new_tokens,
        max_batch_tokens=model.generation.generation_batch_tokens,
        row_inputs=model.row_inputs(rows.histories),
        progress=model.show_progress,
    )
    nearest = model.index.search(model.ground([model.backbone.decode(one.token_ids) for one in answers]), 1)[1]
    targets = rows.readable[model.ITEM_ID].numpy()
    stand = [
        _may_stand(model, own, int(target), history)
        for own, target, history in zip(nearest, targets, rows.histories, strict=True)
    ]
    return np.where(np.array(stand).reshape(nearest.shape), nearest, 0).astype(np.int64)


def contrasts_across(model: BIGRec, rows: TrainingRows, negatives: np.ndarray) -> np.ndarray:
    """Which wrong answers may stand against each row's right one, whosever they are.

    Args:
        model: its catalogue.
        rows: m rows.
        negatives: int64 [m, k], their wrong answers; 0 where there is none.

    Returns:
        bool [m, m * k].
    """
    titles = model.catalog.representative
    flat, targets = negatives.flatten(), rows.readable[model.ITEM_ID].numpy()
    found = np.zeros((len(negatives), len(flat)), dtype=bool)
    for row, history in enumerate(rows.histories):
        known = titles[np.array([*history, targets[row]], dtype=np.int64)]
        found[row] = (flat > 0) & ~np.isin(titles[flat], known)
    return found


def _may_stand(model: BIGRec, items: np.ndarray, target: int, history: Sequence[int]) -> np.ndarray:
    catalog = model.catalog
    found: np.ndarray = false_negative_mask(items, target, np.array(history), catalog.representative, catalog.rankable)
    return found


def _popularity(model: BIGRec) -> np.ndarray:
    """Interactions before the split with each title, at its representative. Returns: float64 [items]."""
    items = row_pairs(load_rows(model.config.for_auxiliary("Pop"), few_shot=False).train)[:, 1]
    return np.bincount(model.catalog.representative[items], minlength=model.catalog.n_items).astype(np.float64)
