"""Candidates: the few titles that a prompt lists, the target's among them, drawn once for all models and epochs.

HitRatio@1 among candidates is what LLaRA and iLoRA report (arXiv 2312.02445, 2408.10159). A prompt that lists them
holds the target, so nothing that ranks the catalogue may read it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import SAMPLE_ID, Rows, row_histories, row_pairs, rows_digest
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.prompt.titles import normalize_title
from recbole_llm.stages import Stage, StageStore, stage_seed

FILE = "candidates.npy"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidates:
    """The candidates of some rows.

    Attributes:
        sample_ids: int64 [rows], ascending; what a row is found by.
        items: int64 [rows, n], in the order of the prompt; a shorter list ends in 0, a row whose target has no title
            has none.
    """

    sample_ids: np.ndarray
    items: np.ndarray

    def of(self, rows: Interaction) -> np.ndarray:
        """Candidates of each row. Returns: int64 [rows, n].

        Raises:
            ValueError: a row for which none were drawn.
        """
        wanted = rows[SAMPLE_ID].cpu().numpy()
        indices = np.minimum(np.searchsorted(self.sample_ids, wanted), len(self.sample_ids) - 1)
        if (missing := self.sample_ids[indices] != wanted).any():
            raise ValueError(f"no candidates were drawn for row {wanted[missing][0]}")
        found: np.ndarray = self.items[indices]
        return found


def row_candidates(
    config: Settings, rows: Rows, phases: Sequence[str], catalog: ItemCatalog, stages: StageStore
) -> Candidates:
    """The candidates of a run's rows, drawn or found; they depend on the row and a seed, not on model or sample.

    The seed is ``seed`` for training rows and ``sample_seed`` for the others, so that runs with several seeds are
    evaluated among the same candidates.

    Args:
        config: the resolved config; ``candidates`` is a number.
        rows: the run's rows.
        phases: ``train``, ``valid``, ``test``, or some of them.
        catalog: the items.
        stages: where they are kept, one stage for each phase.

    Raises:
        InputError: a row has nothing to choose from besides its target.
        ValueError: a stored row lacks its target.
    """
    parts = {phase: getattr(rows, phase) for phase in phases if len(getattr(rows, phase))}
    found = {phase: _phase_candidates(config, part, phase, catalog, stages) for phase, part in parts.items()}
    sample_ids = np.concatenate([part.inter_feat[SAMPLE_ID].numpy() for part in parts.values()])
    order = np.argsort(sample_ids)
    return Candidates(sample_ids[order], np.concatenate(list(found.values()))[order])


def _phase_candidates(
    config: Settings, part: SequentialDataset, phase: str, catalog: ItemCatalog, stages: StageStore
) -> np.ndarray:
    n, seed = config["candidates"], config["seed" if phase == "train" else "sample_seed"]
    drawn = stages.run(CandidatesStage(part, phase, catalog, n, seed))
    sizes = (drawn > 0).sum(axis=1)
    lacks = (sizes > 0) & (drawn != row_pairs(part)[:, 1:]).all(axis=1)
    if lacks.any():
        raise ValueError(f"row {lacks.argmax()} of {phase}: the target is not among the candidates")
    if (fewer := (sizes > 0) & (sizes < n)).any():
        log.warning(
            "%d %s rows have fewer than %d candidates (shortest list: %d)", fewer.sum(), phase, n, sizes[fewer].min()
        )
    if untitled := int((sizes == 0).sum()):
        log.warning("%d %s rows have no candidates: their target has no title", untitled, phase)
    return drawn


class CandidatesStage(Stage[np.ndarray]):
    """The candidates of the rows of a phase, drawn.

    Args:
        rows: rows of the phase.
        phase: ``train``, ``valid`` or ``test``.
        catalog: the items.
        n: candidates of a row.
        seed: seed of the draw.
    """

    def __init__(self, rows: SequentialDataset, phase: str, catalog: ItemCatalog, n: int, seed: int) -> None:
        self._rows, self._catalog, self._n, self._seed = rows, catalog, n, seed
        self.name = f"candidates-{phase}"

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        catalog = self._catalog.fingerprint()
        return {"n": self._n, "seed": self._seed, "catalog": catalog, "rows": rows_digest(self._rows)}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        items, lengths = row_histories(self._rows)
        histories = [row[:length].tolist() for row, length in zip(items, lengths, strict=True)]
        seed = stage_seed(self._seed, "candidates")
        np.save(folder / FILE, draw_candidates(row_pairs(self._rows), histories, self._catalog, self._n, seed))

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: int64 [rows, n]."""
        drawn: np.ndarray = np.load(folder / FILE)
        return drawn


def draw_candidates(
    pairs: np.ndarray, histories: Sequence[Sequence[int]], catalog: ItemCatalog, n: int, seed: int
) -> np.ndarray:
    """Target and n - 1 negatives of each row, shuffled.

    Args:
        pairs: int64 [rows, 2], user and target.
        histories: item ids of each row.
        catalog: the items.
        n: candidates of a row, the target included, >= 2.
        seed: seed of the draw; a row's own part in it are its user, target and history.

    Returns:
        int64 [rows, n]; 0 behind a list that is shorter because there are no more titles, and throughout a row whose
        target has no title.

    Raises:
        InputError: a row has no negative at all.
    """
    pool = CandidatePool(catalog)
    drawn = np.zeros((len(pairs), n), dtype=np.int64)
    for row, ((user, target), history) in enumerate(zip(pairs.tolist(), histories, strict=True)):
        listed = pool.draw(target, history, n, np.random.default_rng([seed, user, target, *history]))
        if listed == [target]:
            raise InputError(
                f"candidates: row {row} (target {catalog.tokens[target]!r}) has no other title to choose from, its "
                "history holds them all; leave candidates out",
                kind="data",
            )
        drawn[row, : len(listed)] = listed
    return drawn


class CandidatePool:
    """The titles that candidates are drawn from.

    Titles are told apart as the strict rule of :func:`recbole_llm.report.answer_metrics` tells them apart, and of items
    that share one, the lowest id stands for it.

    Args:
        catalog: the items.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        ids = {"": 0}
        titles = [normalize_title(title or "") for title in catalog.titles]
        self._first = np.array([ids.setdefault(title, item) for item, title in enumerate(titles)], dtype=np.int64)
        self._items = np.unique(self._first[self._first > 0])

    def draw(self, target: int, history: Sequence[int], n: int, generator: np.random.Generator) -> list[int]:
        """The target among n - 1 others, each position equally likely.

        The others are drawn without replacement, every title alike, among those that neither the history nor the target
        has; all of them, if there are not more. A target without a title gives an empty list.
        """
        if not self._first[target]:
            return []
        known = {*self._first[list(history)].tolist(), int(self._first[target])}
        # So many that n - 1 are left, whichever of them are known.
        count = min(len(self._items), n - 1 + len(known))
        order = generator.choice(self._items, count, replace=False).tolist()
        listed = [item for item in order if item not in known][: n - 1]
        listed.insert(int(generator.integers(len(listed) + 1)), target)
        return listed
