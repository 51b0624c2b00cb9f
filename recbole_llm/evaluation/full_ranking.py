"""The protocol ``FullRanking``: the rank of the target among all items."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataloader import AbstractDataLoader, FullSortEvalDataLoader

from recbole_llm.data.catalog import read_categories
from recbole_llm.data.rows import Rows, find_pairs, row_histories, row_pairs
from recbole_llm.evaluation.base import Evaluation, Protocol, joined_ids, outside_ids
from recbole_llm.evaluation.beyond_accuracy import HEAD, Popularity, beyond_accuracy
from recbole_llm.evaluation.categories import Categories, category_hit_ratio, drop_common
from recbole_llm.evaluation.collector import RowCollector, as_floats, collecting
from recbole_llm.evaluation.head_tail import head_items, head_tail_metrics
from recbole_llm.evaluation.reranking import Reranking
from recbole_llm.evaluation.spread import answer_spread
from recbole_llm.grounding.rank_metrics import NOT_RANKED, RANK_METRICS, ndcg_at
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.progress import Bar

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer

    from recbole_llm.settings.config import Config

CUTOFF = 10  # of the NDCG that rows are compared by
log = logging.getLogger(__name__)


class FullRanking(Protocol):
    """Every item is ranked; or, with RecBole's sampled modes (``uni<n>``, ``pop<n>``), a sample of them.

    A model that ranks by itself (``model.rank(interaction, k)``) is asked for ranks and best items and never makes a
    table of all scores; the others give theirs to RecBole's collector.

    Example:
        >>> FullRanking.gains(pd.DataFrame({"rank": [1, 2, 11]})).round(4).tolist()
        [1.0, 0.6309, 0.0]
    """

    name = "ranks"
    columns = ("user_id", "item_id", "rank", "top_items")
    outcome = ("rank",)
    gain = f"NDCG@{CUTOFF}"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._categories: Categories | None = None
        self._rows: Rows | None = None
        self._reranking: Reranking | None = None
        self._head: np.ndarray | None = None
        self._popularity: Popularity | None = None

    def words(self) -> dict[str, str]:
        """See :class:`Protocol`."""
        mode, topk = str(self.config["eval_args"]["mode"]["test"]), self.config["topk"]
        kind, count = mode.rstrip("0123456789"), mode.lstrip("unipo")
        drawn = {"uni": "uniformly", "pop": "by popularity"}.get(kind)
        among = "The whole catalogue is ranked"
        if drawn:
            among = f"The target is ranked among {count} items drawn {drawn}, by sample_seed, the same for all models"
        masked = "Items of the history are ranked like all others; nothing is masked."
        if not self.config["repeatable"]:
            masked = f"Items that a user had before the target are not {'drawn' if drawn else 'ranked'}."
        return {
            "Candidates": f"{among}, with one target per row.",
            "Masking": masked,
            "Ties": "Items of equal scores are ranked by their ids, the lower one first; an item without a score is "
            "not ranked and never a hit.",
            "Metrics": f"Means over rows, unrounded, at {', '.join(map(str, topk))}.",
        }

    def check(self, rows: Rows) -> None:
        """Refuse a ``category_field`` that is no item field, or not text."""
        self._read_categories(rows)

    def prepare(self, rows: Rows, model: AbstractRecommender | None = None) -> None:
        """Read the categories that items can be told apart by, where the data state some."""
        self._rows = rows
        field, found = self.config["category_field"], self._read_categories(rows)
        if field and found is None:
            log.info("category_hit is left out: load_col does not load the item field '%s'.", field)
        self._categories = drop_common(found) if found else None
        if self.config["head_share"]:
            self._head = head_items(rows.whole.item_counts, self.config["head_share"])

    def _read_categories(self, rows: Rows) -> list[list[str]] | None:
        field = self.config["category_field"]
        return read_categories(rows.whole, field) if field else None

    def evaluate(self, trainer: Trainer, loader: AbstractDataLoader, show_progress: bool = False) -> Evaluation:
        """See :class:`Protocol`."""
        with collecting(trainer) as collector:
            if self._is_ranked_by_model(trainer.model, loader, collector):
                metrics = _rank_by_model(trainer, loader, show_progress)
            else:
                metrics = trainer.evaluate(loader, load_best_model=False, show_progress=show_progress)
        return _evaluation(loader.dataset, metrics, collector)

    def complete(self, evaluation: Evaluation) -> Evaluation:
        """Metrics completed with hit ratio of the category, head and tail, and what ``beyond_accuracy`` asks for."""
        targets, topk, more = evaluation.pairs[:, 1], self.config["topk"], {}
        if self._categories is not None and len(evaluation.top_items):
            more = category_hit_ratio(evaluation.top_items, targets, self._categories, topk)
        if self._head is not None:
            more = {**more, **head_tail_metrics(evaluation.ranks, targets, self._head, topk)}
        if self.config["beyond_accuracy"] and len(evaluation.top_items):
            more = {**more, **self._beyond(evaluation)}
        return Evaluation(**{**vars(evaluation), "metrics": {**evaluation.metrics, **more}}) if more else evaluation

    def _beyond(self, evaluation: Evaluation) -> dict[str, float]:
        """The columns of ``beyond_accuracy``."""
        if self._rows is None:
            raise RuntimeError("prepare comes before complete")
        if self._popularity is None:
            self._popularity = Popularity.of(self._rows)
        family, _, cutoff = self.compared_metric.partition("@")
        head, targets = head_items(self._popularity.counts, HEAD), evaluation.pairs[:, 1]
        parts = {} if self._head is not None else head_tail_metrics(evaluation.ranks, targets, head, [int(cutoff)])
        for part in (self._rows.test, self._rows.valid):
            indices = find_pairs(row_pairs(part), evaluation.pairs) if len(part) else None
            if indices is not None:
                histories = row_histories(part)[0][indices]
                more = beyond_accuracy(evaluation, histories, self._popularity, family, int(cutoff))
                return {**more, **parts}
        raise ValueError("the evaluated rows are neither those of validation nor of test")

    def finish(self, trainer: Trainer, evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """See :class:`Protocol`; with a ``rerank``, lists are put in its order and the metrics computed again."""
        if self.config["rerank"] in (None, "none"):
            return super().finish(trainer, evaluations)
        if self._rows is None:
            raise RuntimeError("prepare comes before finish")
        self._reranking = reranking = Reranking.make(self.config, self._rows, trainer.model)
        dataset = self._rows.whole

        def again(base: Evaluation, trade_off: float) -> Evaluation:
            return self.complete(_reranked(trainer, dataset, base, reranking, trade_off))

        reranking.choose(evaluations, {split: self.complete(base) for split, base in evaluations.items()}, again)
        return {split: again(base, reranking.trade_off) for split, base in evaluations.items()}

    def keep(self, folder: Path) -> None:
        """See :class:`Protocol`: the order of the lists, and how it was chosen."""
        if self._reranking is not None:
            self._reranking.write(folder)

    @staticmethod
    def gains(rows: pd.DataFrame) -> np.ndarray:
        """NDCG of each row by the rank of its target, 1 is best; 0 where the target was not ranked."""
        return ndcg_at(_ranks_of(rows), CUTOFF)

    @property
    def compared_metric(self) -> str:
        """The metric of validation where it is one of ranks, else NDCG@10."""
        family, _, cutoff = self.usual_metric.partition("@")
        return self.usual_metric if family in RANK_METRICS and cutoff.isdigit() else f"ndcg@{CUTOFF}"

    def row_gains(self, rows: pd.DataFrame) -> np.ndarray:
        """See :class:`Protocol`."""
        family, _, cutoff = self.compared_metric.partition("@")
        return RANK_METRICS[family](_ranks_of(rows), int(cutoff))

    def _is_ranked_by_model(
        self, model: AbstractRecommender, loader: AbstractDataLoader, collector: RowCollector
    ) -> bool:
        """Whether the model ranks by itself: not where a metric reads all scores, nor where these are changed."""
        reweighted = self.config["reweight"] not in (None, "none")
        full = isinstance(loader, FullSortEvalDataLoader)
        changed = reweighted or not self.config["repeatable"]
        return full and not changed and not collector.needs_scores and ranks_by_itself(model)


def _ranks_of(rows: pd.DataFrame) -> np.ndarray:
    """0-based ranks int64 [rows]; -1 where a target was not ranked."""
    ranks = pd.to_numeric(rows["rank"]).astype("Int64").fillna(NOT_RANKED + 1).to_numpy(dtype=np.int64)
    return np.asarray(ranks - 1)


def ranks_by_itself(model: AbstractRecommender) -> bool:
    """Whether a model offers ``rank``, and no subclass has replaced the scores that it stands for."""
    classes = type(model).__mro__
    own = {name: [depth for depth, base in enumerate(classes) if name in vars(base)] for name in _WAYS}
    return bool(own["rank"]) and (not own["full_sort_predict"] or own["rank"][0] <= own["full_sort_predict"][0])


_WAYS = ("rank", "full_sort_predict")


@torch.no_grad()
def _rank_by_model(trainer: Trainer, loader: AbstractDataLoader, show_progress: bool) -> Any:
    """RecBole's metrics of the model's own ranking of each row."""
    model, collector, config = trainer.model, trainer.eval_collector, trainer.config
    model.eval()
    for batch, *_ in Bar(loader, desc="evaluate", disable=not show_progress):
        ranking = model.rank(batch.to(model.device), collector.depth)
        users, targets = batch[config["USER_ID_FIELD"]].cpu(), batch[config["ITEM_ID_FIELD"]].cpu()
        collector.collect_ranking(users, targets, *_as_tensors(ranking))
    collector.model_collect(model)
    metrics = trainer.evaluator.evaluate(collector.get_data_struct())
    trainer.wandblogger.log_eval_metrics(metrics, head="eval")
    return metrics


def _as_tensors(ranking: Ranking) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ranks, items, scores = map(torch.from_numpy, (ranking.ranks, ranking.top_items, ranking.top_scores))
    return ranks, items, scores


def _reranked(
    trainer: Trainer, dataset: Dataset, base: Evaluation, reranking: Reranking, trade_off: float
) -> Evaluation:
    """The evaluation of the same rows with their lists in another order."""
    if base.listed is None:
        raise RuntimeError("the lists of several targets in a row are not kept")
    ranking = reranking.apply(base.listed, targets=base.pairs[:, 1], trade_off=trade_off)
    users, targets = map(torch.from_numpy, base.pairs.T.copy())
    with collecting(trainer) as collector:
        collector.collect_ranking(users, targets, *_as_tensors(ranking))
        metrics = trainer.evaluator.evaluate(collector.get_data_struct())
    return _evaluation(dataset, metrics, collector)


def _evaluation(dataset: Dataset, metrics: Any, collector: RowCollector) -> Evaluation:
    """What a collector knows of the rows, with their metrics."""
    pairs, ranks, best = collector.pairs, collector.ranks, collector.best
    best = best if len(best) == len(pairs) else best[:0]  # several targets in a row have no single rank
    shown = pd.array(np.where(ranks < 0, 0, ranks + 1), dtype="Int64")
    shown[ranks < 0] = pd.NA
    rows = {**outside_ids(dataset, pairs), "rank": shown, "top_items": joined_ids(dataset, best)}
    spread = answer_spread(best[:, 0])
    return Evaluation(as_floats(metrics), pd.DataFrame(rows), pairs, ranks, best, spread, collector.listed)
