"""The protocol ``CandidateChoice``: which of a row's candidates a model names, and how often it is the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.candidates import Candidates, row_candidates
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import Rows, row_pairs
from recbole_llm.evaluation.answers import answer_outcomes, outcome_metrics
from recbole_llm.evaluation.base import Evaluation, Protocol, joined_ids, outside_ids
from recbole_llm.evaluation.spread import answer_spread
from recbole_llm.prompt.titles import normalize_title
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.stages import StageStore

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer
    from torch import Tensor

    from recbole_llm.settings.config import Config

HIT_RATIO = "hit_ratio"
RATIOS = (HIT_RATIO, "hit_ratio_valid", "valid_ratio")


class CandidateChoice(Protocol):
    """A prompt lists candidates, the target among them, and the model names one; nothing is ranked.

    An LLM recommender answers in its own words or by its scores of the candidates; one of RecBole's models answers
    with the candidate that it scores best. The outcomes follow two rules (:mod:`recbole_llm.evaluation.answers`).

    Example:
        >>> CandidateChoice.gains(pd.DataFrame({"hit": [1, 0]})).tolist()
        [1.0, 0.0]
    """

    name = "answers"
    columns = ("user_id", "item_id", "answer", "valid", "hit", "valid_reference", "hit_reference", "candidates")
    outcome = ("hit",)
    gain = "HitRatio@1"
    compared_metric = HIT_RATIO

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._catalog: ItemCatalog | None = None
        self._candidates: Candidates | None = None

    @property
    def n_candidates(self) -> int:
        """See :class:`Protocol`."""
        return int(self.config["candidates"])

    @property
    def valid_metric(self) -> str:
        """See :class:`Protocol`."""
        return LOSS if super().valid_metric == LOSS else HIT_RATIO

    @property
    def usual_metric(self) -> str:
        """See :class:`Protocol`."""
        return HIT_RATIO

    @property
    def title(self) -> str:
        """See :class:`Protocol`."""
        return f"Results among {self.n_candidates} candidates"

    def notes(self) -> tuple[str, ...]:
        """Among how many candidates a row's answer is chosen."""
        return (f"evaluated among {self.n_candidates} candidates per row, the target one of them",)

    def words(self) -> dict[str, str]:
        """See :class:`Protocol`."""
        return {
            "Candidates": f"A prompt lists {self.n_candidates} titles, the target's one of them, drawn once for all "
            "models and epochs; a model names one.",
            "Masking": "Items of the history are no candidates.",
            "Ties": "Of candidates with equal scores the lower id is chosen.",
            "Metrics": "HitRatio@1 is hits over rows and ValidRatio answers that name exactly one candidate over rows; "
            "the strict rule wants whole words, the reference rule is that of LLaRA's code.",
        }

    def check(self, rows: Rows) -> None:
        """Refuse a ``title_field`` or ``title_with`` that is no item field, or not text."""
        self._titles(rows)

    def _titles(self, rows: Rows) -> ItemCatalog:
        return ItemCatalog.from_dataset(rows.whole, self.config["title_field"], self.config["title_with"])

    def prepare(self, rows: Rows, model: AbstractRecommender | None = None) -> None:
        """Draw the candidates of the rows: those that prompts list, or those that scores are compared of.

        Raises:
            InputError: a row has nothing to choose from besides its target, or a prompt has no room for its candidates.
        """
        if model is not None:
            drawn = row_candidates(self.config, rows, ("train", "valid", "test"), model.catalog, model.stages)
            model.set_candidates(drawn)
            return
        self._catalog = self._titles(rows)
        stages = StageStore(Path(self.config["checkpoint_dir"]) / "stages")
        self._candidates = row_candidates(self.config, rows, ("valid", "test"), self._catalog, stages)

    def evaluate(self, trainer: Trainer, loader: AbstractDataLoader, show_progress: bool = False) -> Evaluation:
        """See :class:`Protocol`; candidates must have been drawn by :meth:`prepare`."""
        if self._catalog is None or self._candidates is None:
            return _let_answer(trainer.model, loader)
        picks = Picks(self._candidates)
        usual = trainer.eval_collector, trainer.evaluator
        trainer.eval_collector, trainer.evaluator = picks, picks
        try:
            trainer.evaluate(loader, load_best_model=False, show_progress=show_progress)
        finally:
            trainer.eval_collector, trainer.evaluator = usual
        candidates = self._candidates.of(loader.dataset.inter_feat)
        return _picked(loader.dataset, np.concatenate(picks.items), candidates, self._catalog.titles)

    @staticmethod
    def gains(rows: pd.DataFrame) -> np.ndarray:
        """1 for a hit under the strict rule, else 0."""
        hits: np.ndarray = rows["hit"].to_numpy(dtype=np.float64)
        return hits


def _let_answer(model: AbstractRecommender, loader: AbstractDataLoader) -> Evaluation:
    """Let an LLM recommender answer the rows of a loader, in its own words or by its scores of the candidates."""
    model.eval()
    rows = loader.dataset.inter_feat
    candidates, pairs, titles = model.candidates.of(rows), row_pairs(loader.dataset), model.catalog.titles
    if model.grounding.chooses:
        best = best_candidates(candidates, model.candidate_scores(rows))
        return _picked(loader.dataset, best, candidates, titles)
    answers = model.generate_text(rows)
    found = np.flatnonzero(candidates.any(axis=1))  # the others, whose target has no title, are invalid
    listed = [[titles[item] for item in candidates[row] if item] for row in found]
    targets = [titles[item] for item in pairs[found, 1]]
    outcomes = np.zeros((2, 2, len(answers)), dtype=bool)
    for index, rule in enumerate(("strict", "reference")):
        outcomes[index][:, found] = answer_outcomes([answers[row] for row in found], listed, targets, rule)
    named = [model.prompts.layout.title_of(answer) for answer in answers]
    return _evaluation(loader.dataset, answers, candidates, outcomes[0], outcomes[1], named)


def best_candidates(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The item of each row that is scored best, the lower id among equals.

    Args:
        candidates: int64 [rows, n], 0 behind a shorter list.
        scores: [rows, n].

    Returns:
        int64 [rows]; 0 where no candidate has a finite score.

    Raises:
        ValueError: a score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError("a model gave a score that is not a number")
    order = candidates.argsort(axis=1, kind="stable")
    items = np.take_along_axis(candidates, order, axis=1)
    scores = np.where(items > 0, np.take_along_axis(scores, order, axis=1), -np.inf)
    best = scores.argmax(axis=1)[:, None]
    finite = np.isfinite(np.take_along_axis(scores, best, axis=1))
    return np.where(finite, np.take_along_axis(items, best, axis=1), 0)[:, 0]


class Picks:
    """Collector and evaluator in one: of each row's scores it keeps the best candidate, and it computes nothing.

    Args:
        candidates: candidates of the rows that will be scored.

    Attributes:
        items: what was picked, int64 [rows] for each batch.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.items: list[np.ndarray] = []

    def eval_batch_collect(
        self, scores_tensor: torch.Tensor, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Pick from scores [rows, items]."""
        candidates, scores = self.candidates.of(interaction), scores_tensor.double().cpu().numpy()
        self.items.append(best_candidates(candidates, np.take_along_axis(scores, candidates, axis=1)))

    def model_collect(self, model: AbstractRecommender) -> None:
        """RecBole's collectors may look at the model."""

    def get_data_struct(self) -> None:
        """RecBole's collectors give what metrics are computed from."""

    def evaluate(self, data_struct: None) -> dict[str, float]:
        """RecBole's evaluators compute metrics."""
        return {}


def _picked(dataset: Dataset, items: np.ndarray, candidates: np.ndarray, titles: Sequence[str | None]) -> Evaluation:
    """Each row's answer is one candidate, or none (0), so the rules cannot differ."""
    outcomes = np.stack([items > 0, items == row_pairs(dataset)[:, 1]])
    answers = [titles[item] or "" for item in items]
    return _evaluation(dataset, answers, candidates, outcomes, outcomes, answers)


def _evaluation(
    dataset: Dataset,
    answers: Sequence[str],
    candidates: np.ndarray,
    strict: np.ndarray,
    reference: np.ndarray,
    named: Sequence[str],
) -> Evaluation:
    """Outcomes are bool [2, rows], valid answers and hits; ``named`` are the titles that the answers name."""
    by_rule = {"": outcome_metrics(*strict), "_reference": outcome_metrics(*reference)}
    pairs = row_pairs(dataset)
    names = ("valid", "hit")
    rows = pd.DataFrame(
        {
            **outside_ids(dataset, pairs),
            "answer": answers,
            **{name: own.astype(np.int64) for name, own in zip(names, strict, strict=True)},
            **{f"{name}_reference": own.astype(np.int64) for name, own in zip(names, reference, strict=True)},
            "candidates": joined_ids(dataset, candidates),
        }
    )
    metrics = {name + rule: found[name] for rule, found in by_rule.items() for name in RATIOS}
    spread = answer_spread(np.array([normalize_title(title) for title in named], dtype=object))
    return Evaluation(metrics, rows, pairs, summary=spread)
