"""The judge of answers: which of a row's candidates a model names, and how often it is the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.candidates import Candidates, row_candidates
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import Rows, row_pairs
from recbole_llm.evaluation.answers import AnswerOutcomes, answer_outcomes
from recbole_llm.evaluation.full_ranking import Judgement
from recbole_llm.stages import StageStore

HIT_RATIO = "hit_ratio"
RATIOS = (HIT_RATIO, "hit_ratio_valid", "valid_ratio")


@dataclass(frozen=True)
class AnswerJudgement(Judgement):
    """What one model answered on the rows of one split; nothing is ranked.

    Attributes:
        answers: raw text of each row, or the title of the candidate that was scored best.
        candidates: int64 [rows, n], see :class:`Candidates`.
        strict: the outcomes under the rule that ``hit_ratio``, ``hit_ratio_valid`` and ``valid_ratio`` are of.
        reference: the outcomes under that of ``hit_ratio_reference`` and its like.
    """

    answers: Sequence[str] = ()
    candidates: np.ndarray | None = None
    strict: AnswerOutcomes | None = None
    reference: AnswerOutcomes | None = None


def judge_answers(model: Any, loader: Any) -> AnswerJudgement:
    """Let an LLM recommender answer the rows of a loader, in its own words or by its scores of the candidates.

    Args:
        model: the recommender, its candidates drawn.
        loader: the judged rows (:func:`recbole_llm.data.loaders.eval_loader`).
    """
    model.eval()
    rows = loader.dataset.inter_feat
    candidates, pairs, titles = model.candidates.of(rows), row_pairs(loader.dataset), model.catalog.titles
    if model.grounding.chooses:
        best = best_candidates(candidates, model.grounding.candidate_scores(rows))
        return _picked(pairs, best, candidates, titles)
    answers = model.generate_text(rows)
    found = np.flatnonzero(candidates.any(axis=1))  # the others, whose target has no title, are invalid
    listed = [[titles[item] for item in candidates[row] if item] for row in found]
    targets = [titles[item] for item in pairs[found, 1]]

    def outcomes(rule: str) -> AnswerOutcomes:
        of_listed = answer_outcomes([answers[row] for row in found], listed, targets, rule)
        valid, hits = np.zeros((2, len(answers)), dtype=bool)
        valid[found], hits[found] = of_listed.valid, of_listed.hits
        return AnswerOutcomes(valid, hits)

    return _judgement(pairs, answers, candidates, outcomes("strict"), outcomes("reference"))


class CandidateJudge:
    """Judges RecBole's models by the candidate that they score best; it stands in for ``judge``.

    Every such answer is one candidate, so all of them are valid, under both rules.

    Args:
        config: the resolved config of the run.
        rows: its rows.
    """

    def __init__(self, config: Any, rows: Rows) -> None:
        self.catalog = ItemCatalog.from_dataset(rows.whole, config["title_field"], config["title_with"])
        stages = StageStore(Path(config["checkpoint_dir"]) / "stages")
        self.candidates = row_candidates(config, rows, ("valid", "test"), self.catalog, stages)

    def __call__(self, trainer: Any, loader: Any, show_progress: bool = False) -> AnswerJudgement:
        """Judge a trainer's model as it stands on the rows of a loader; nothing is ranked."""
        picks = _Picks(self.candidates)
        usual = trainer.eval_collector, trainer.evaluator
        trainer.eval_collector, trainer.evaluator = picks, picks
        try:
            trainer.evaluate(loader, load_best_model=False, show_progress=show_progress)
        finally:
            trainer.eval_collector, trainer.evaluator = usual
        candidates = self.candidates.of(loader.dataset.inter_feat)
        return _picked(row_pairs(loader.dataset), np.concatenate(picks.items), candidates, self.catalog.titles)


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


class _Picks:
    """Collector and evaluator in one: of each row's scores it keeps the best candidate, and it computes nothing."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.items: list[np.ndarray] = []

    def eval_batch_collect(
        self, scores_tensor: torch.Tensor, interaction: Interaction, positive_u: Any, positive_i: Any
    ) -> None:
        """Pick from scores [rows, items]."""
        candidates, scores = self.candidates.of(interaction), scores_tensor.double().cpu().numpy()
        self.items.append(best_candidates(candidates, np.take_along_axis(scores, candidates, axis=1)))

    def model_collect(self, model: Any) -> None:
        """RecBole's collectors may look at the model."""

    def get_data_struct(self) -> None:
        """RecBole's collectors give what metrics are computed from."""

    def evaluate(self, data_struct: None) -> dict[str, float]:
        """RecBole's evaluators compute metrics."""
        return {}


def _picked(
    pairs: np.ndarray, items: np.ndarray, candidates: np.ndarray, titles: Sequence[str | None]
) -> AnswerJudgement:
    """Each row's answer is one candidate, or none (0), so the rules cannot differ."""
    outcomes = AnswerOutcomes(items > 0, items == pairs[:, 1])
    return _judgement(pairs, [titles[item] or "" for item in items], candidates, outcomes, outcomes)


def _judgement(
    pairs: np.ndarray,
    answers: Sequence[str],
    candidates: np.ndarray,
    strict: AnswerOutcomes,
    reference: AnswerOutcomes,
) -> AnswerJudgement:
    by_rule = {"": strict.metrics(), "_reference": reference.metrics()}
    metrics = {name + rule: found[name] for rule, found in by_rule.items() for name in RATIOS}
    no_ranks = {"ranks": np.empty(0, dtype=np.int64), "top_items": np.empty((0, 0), dtype=np.int64)}
    return AnswerJudgement(
        metrics, **no_ranks, pairs=pairs, answers=answers, candidates=candidates, strict=strict, reference=reference
    )
