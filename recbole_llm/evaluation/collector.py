"""RecBole's collector with one tie rule for all models, and a record of each row's result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.utils import init_seed

from recbole_llm.distributed import on_main
from recbole_llm.evaluation.category_table import CategoryTable
from recbole_llm.evaluation.recbole_metrics import count_by_item
from recbole_llm.grounding.ranking import Ranking, rank_scores, target_ranks
from recbole_llm.settings.metric_names import CATEGORIES, ITEM_COUNTS, TARGETS
from recbole_llm.top_k import top_k

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.interaction import Interaction
    from recbole.trainer import Trainer

    from recbole_llm.settings.config import Config

COUNTS = ("data.num_items", "data.num_users", ITEM_COUNTS, "data.count_users", CATEGORIES)
UNROUNDED = 15  # decimals; RecBole rounds every metric, this keeps all a float64 mean has


class RowCollector(Collector):
    """RecBole's collector with a tie rule, any ``topk``, and a memory of ranks, best items and clicks.

    An item without a finite score is never a hit, however large k is: it is not in the ranking.

    Attributes:
        needs_scores: whether a metric reads the scores of all items, not only ranks and best items.
        depth: how many best items of a row are considered: as many as the longest cut-off, or as are re-ranked.
        keeps_lists: whether these are kept; RecBole's own validations have no use for them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._own_needs = [need for need in ("rec.items", "rec.topk") if self.register.need(need)]
        self.needs_scores = any(self.register.need(need) for need in ("rec.meanrank", "rec.score"))
        for need in self._own_needs:
            delattr(self.register, need)
        self._reranked = config["rerank"] not in (None, "none")
        self.depth = max(*self.topk, config["rerank_topn"] if self._reranked else 1)
        self.keeps_lists = False
        self.forget()

    def forget(self) -> None:
        """Drop what was remembered of earlier rows."""
        self._ranks: list[torch.Tensor] = []
        self._top: list[torch.Tensor] = []
        self._pairs: list[torch.Tensor] = []
        self._clicks: list[torch.Tensor] = []
        self._listed: list[Ranking] = []

    def data_collect(self, train_data: AbstractDataLoader) -> None:
        """What metrics read of the data: popularity is that before the split, whatever the model was trained on."""
        # The loader of knowledge models holds two: one of interactions, one of facts.
        loader = getattr(train_data, "general_dataloader", train_data)
        super().data_collect(loader)
        if self.register.need(CATEGORIES):
            self.data_struct.set(CATEGORIES, CategoryTable.of(loader.dataset, self.config))
        if not self.register.need(ITEM_COUNTS):
            return
        counts = getattr(loader.dataset, "item_counts", None)
        if counts is not None:
            self.data_struct.set(ITEM_COUNTS, {int(item): int(counts[item]) for item in counts.nonzero()[0]})

    def eval_batch_collect(
        self, scores_tensor: torch.Tensor, interaction: Interaction, positive_u: torch.Tensor, positive_i: torch.Tensor
    ) -> None:
        """Collect one batch: scores [rows, items], and the row and item of every positive."""
        if torch.isnan(scores_tensor).any():
            raise ValueError(f"model {self.config['model']} gave a score that is not a number")
        if self._own_needs:
            positive_u, positive_i = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
            self._collect_scores(scores_tensor, positive_u, positive_i)
            users = interaction[self.config["USER_ID_FIELD"]]
            self._remember(scores_tensor, users, positive_u, positive_i)
        if self.register.need("rec.score"):
            self._remember_clicks(scores_tensor, interaction)
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def collect_ranking(
        self,
        users: torch.Tensor,
        targets: torch.Tensor,
        ranks: torch.Tensor,
        items: torch.Tensor,
        scores: torch.Tensor | None = None,
    ) -> None:
        """Collect one batch of a model that ranks by itself.

        Args:
            users: int64 [rows].
            targets: int64 [rows].
            ranks: int64 [rows], 0-based ranks of the targets; -1 where one is not ranked.
            items: int64 [rows, at least max(topk)], the best items, 0 behind a shorter ranking.
            scores: float64 [rows, the same], theirs; read where they are to be re-ranked.
        """
        width = max(self.topk)
        if self._reranked and self.keeps_lists and scores is not None:
            self._listed.append(Ranking(ranks.numpy(), items.numpy(), scores.numpy()))
        items = items[:, :width]
        hits = ((items == targets[:, None]) & (items > 0)).int()
        self._update(items, hits, torch.ones(len(items), 1, dtype=torch.int))
        self._update_targets(targets)
        self._top.append(items)
        self._ranks.append(ranks)
        self._pairs.append(torch.stack([users, targets], dim=1))

    def _collect_scores(self, scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor) -> None:
        width = max(self.topk)
        if self._reranked and self.keeps_lists:
            self._listed.append(rank_scores(scores, None, self.depth))
        values, ids = top_k(scores, width)
        positive = torch.zeros_like(scores, dtype=torch.int)
        positive[positive_u, positive_i] = 1
        ranked = torch.isfinite(values)
        hits = positive.gather(1, ids) * ranked
        missing = width - ids.shape[1]
        if missing:
            ids, hits, ranked = (torch.nn.functional.pad(part, (0, missing)) for part in (ids, hits, ranked))
        ids = ids.masked_fill(~ranked, 0)
        self._update(ids, hits, positive.sum(1, keepdim=True))
        self._top.append(ids.cpu())
        if len(positive_i) == len(scores):
            self._update_targets(positive_i)

    def _update_targets(self, targets: torch.Tensor) -> None:
        if self.register.need(CATEGORIES):
            self.data_struct.update_tensor(TARGETS, targets)

    def _update(self, items: torch.Tensor, hits: torch.Tensor, n_positive: torch.Tensor) -> None:
        """What RecBole's metrics read: best items [rows, k], which are hits, and positives per row [rows, 1]."""
        if "rec.items" in self._own_needs:
            self.data_struct.update_tensor("rec.items", items)
        if "rec.topk" in self._own_needs:
            self.data_struct.update_tensor("rec.topk", torch.cat([hits, n_positive], dim=1))

    def _remember(
        self, scores: torch.Tensor, users: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor
    ) -> None:
        if len(positive_u) != len(scores):  # several targets in a row have no single rank
            return
        self._ranks.append(target_ranks(scores, positive_i).cpu())
        # Sampled evaluation repeats a user once per candidate; the ranking has one row per user.
        users = users.to(scores.device) if len(users) == len(scores) else torch.unique_consecutive(users)
        self._pairs.append(torch.stack([users.cpu(), positive_i.cpu()], dim=1))

    def _remember_clicks(self, scores: torch.Tensor, interaction: Interaction) -> None:
        labels = interaction[self.config["LABEL_FIELD"]].cpu().double()
        pairs = [interaction[self.config[key]].cpu() for key in ("USER_ID_FIELD", "ITEM_ID_FIELD")]
        self._clicks.append(torch.stack([labels, scores.cpu().double()], dim=1))
        self._pairs.append(torch.stack(pairs, dim=1))

    def get_data_struct(self) -> DataStruct:
        """What the metrics are computed from.

        RecBole moves everything to the CPU, counts that are no tensors included, and so fails for ItemCoverage,
        GiniIndex and their like: https://github.com/RUCAIBox/RecBole/issues/2131.
        """
        counts = {key: self.data_struct[key] for key in COUNTS if key in self.data_struct}
        for key in counts:
            del self.data_struct[key]
        struct = super().get_data_struct()
        if TARGETS in self.data_struct:
            del self.data_struct[TARGETS]
        for key, value in counts.items():
            struct[key] = self.data_struct[key] = value
        return struct

    # ---- what was remembered since :meth:`forget`

    @property
    def ranks(self) -> np.ndarray:
        """0-based rank of each row's target; -1 where it has no finite score. Returns: int64 [rows]."""
        return _together(self._ranks, (0,))

    @property
    def best(self) -> np.ndarray:
        """The best items of each row, padded by 0 where fewer are ranked. Returns: int64 [rows, max(topk)]."""
        return _together(self._top, (0, max(self.topk)))

    @property
    def listed(self) -> Ranking | None:
        """The :attr:`depth` best items of each row with their scores, where they are to be re-ranked."""
        if not self._listed:
            return None
        whole = Ranking.join(self._listed)
        ranks = self.ranks
        return Ranking(ranks, whole.top_items, whole.top_scores) if len(ranks) == len(whole) else None

    @property
    def pairs(self) -> np.ndarray:
        """User and target of each row. Returns: int64 [rows, 2]."""
        return _together(self._pairs, (0, 2))

    @property
    def clicks(self) -> np.ndarray:
        """Label and predicted probability of each row, where clicks are predicted. Returns: float64 [rows, 2]."""
        return _together(self._clicks, (0, 2))


def _together(parts: list[torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
    return torch.cat(parts).numpy() if parts else np.empty(shape, dtype=np.int64)


class _Unrounded:
    """A config that asks RecBole's metrics for all decimals."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return UNROUNDED if key == "metric_decimal_place" else self._config[key]


def unrounded_evaluator(config: Config) -> Evaluator:
    """RecBole's evaluator of the configured metrics, without rounding."""
    return _by_main(count_by_item(Evaluator(_Unrounded(config))))


def _by_main(evaluator: Evaluator) -> Evaluator:
    """Let the main process compute the metrics of the rows, which all processes know."""
    evaluate = evaluator.evaluate
    evaluator.evaluate = lambda data: on_main(lambda: evaluate(data))
    return evaluator


def install_collector(trainer: Trainer) -> RowCollector:
    """Give a RecBole trainer the collector of all models, so that its own validation takes any ``topk`` too."""
    collector = RowCollector(trainer.config)
    trainer.eval_collector = collector
    count_by_item(trainer.evaluator)
    return collector


@contextmanager
def collecting(trainer: Trainer) -> Iterator[RowCollector]:
    """A context in which a trainer computes unrounded metrics, and after which its collector knows the rows.

    The weights of its model must not change in it.

    Args:
        trainer: a RecBole trainer that :func:`install_collector` has been applied to.
    """
    init_seed(trainer.config["seed"], trainer.config["reproducibility"])  # for models whose scores are random
    collector: RowCollector = trainer.eval_collector
    collector.forget()
    collector.keeps_lists = True
    rounded, trainer.evaluator = trainer.evaluator, unrounded_evaluator(trainer.config)
    try:
        with getattr(trainer.model, "weights_stay", nullcontext)():
            yield collector
    finally:
        trainer.evaluator, collector.keeps_lists = rounded, False


def as_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
