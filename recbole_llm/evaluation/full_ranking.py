"""One judge for all models: exact ranks with one tie rule, unrounded metrics, and what each row got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.utils import init_seed

from recbole_llm.grounding.ranking import target_ranks, top_items

COUNTS = ("data.num_items", "data.num_users", "data.count_items", "data.count_users")
UNROUNDED = 15  # decimals; RecBole rounds every metric, this keeps all a float64 mean has


@dataclass(frozen=True)
class Judgement:
    """What one model did on the rows of one split.

    Attributes:
        metrics: metric name ("ndcg@10") to value, unrounded.
        ranks: int64 [rows], 0-based rank of the target; -1 where the target has no finite score.
        top_items: int64 [rows, k], the first k items, padded by 0 where fewer are ranked.
        pairs: int64 [rows, 2], user and target.
        clicks: float64 [rows, 2], label and predicted probability, where clicks are judged; then nothing is ranked.
    """

    metrics: dict[str, float]
    ranks: np.ndarray
    top_items: np.ndarray
    pairs: np.ndarray
    clicks: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))


class JudgeCollector(Collector):
    """RecBole's collector with a tie rule, any ``topk``, and a memory of ranks and best items.

    An item without a finite score is never a hit, however large k is: it is not in the ranking.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._own_needs = [need for need in ("rec.items", "rec.topk") if self.register.need(need)]
        for need in self._own_needs:
            delattr(self.register, need)
        self.forget()

    def forget(self) -> None:
        """Drop what was remembered of earlier rows."""
        self._ranks: list[torch.Tensor] = []
        self._top: list[torch.Tensor] = []
        self._pairs: list[torch.Tensor] = []
        self._clicks: list[torch.Tensor] = []

    def eval_batch_collect(
        self, scores_tensor: torch.Tensor, interaction: Any, positive_u: torch.Tensor, positive_i: torch.Tensor
    ) -> None:
        """Collect one batch: scores [rows, items], and the row and item of every positive."""
        if torch.isnan(scores_tensor).any():
            raise ValueError(f"model {self.config['model']} gave a score that is not a number")
        if self._own_needs:
            positive_u, positive_i = positive_u.to(scores_tensor.device), positive_i.to(scores_tensor.device)
            self._collect_ranking(scores_tensor, positive_u, positive_i)
            users = interaction[self.config["USER_ID_FIELD"]]
            self._remember(scores_tensor, users, positive_u, positive_i)
        if self.register.need("rec.score"):
            self._remember_clicks(scores_tensor, interaction)
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def _collect_ranking(self, scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor) -> None:
        width = max(self.topk)
        ids = top_items(scores, width)
        positive = torch.zeros_like(scores, dtype=torch.int)
        positive[positive_u, positive_i] = 1
        ranked = torch.isfinite(scores.gather(1, ids))
        hits = positive.gather(1, ids) * ranked
        missing = width - ids.shape[1]
        if missing:
            ids, hits, ranked = (torch.nn.functional.pad(part, (0, missing)) for part in (ids, hits, ranked))
        if "rec.items" in self._own_needs:
            self.data_struct.update_tensor("rec.items", ids)
        if "rec.topk" in self._own_needs:
            self.data_struct.update_tensor("rec.topk", torch.cat([hits, positive.sum(1, keepdim=True)], dim=1))
        self._top.append(ids.masked_fill(~ranked, 0).cpu())

    def _remember(
        self, scores: torch.Tensor, users: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor
    ) -> None:
        if len(positive_u) != len(scores):  # several targets in a row have no single rank
            return
        self._ranks.append(target_ranks(scores, positive_i).cpu())
        # Sampled evaluation repeats a user once per candidate; the ranking has one row per user.
        users = users.to(scores.device) if len(users) == len(scores) else torch.unique_consecutive(users)
        self._pairs.append(torch.stack([users.cpu(), positive_i.cpu()], dim=1))

    def _remember_clicks(self, scores: torch.Tensor, interaction: Any) -> None:
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
        for key, value in counts.items():
            struct[key] = self.data_struct[key] = value
        return struct

    def judgement(self, metrics: Mapping[str, float]) -> Judgement:
        """Everything remembered since :meth:`forget`, with the metrics computed from it."""

        def together(parts: list[torch.Tensor], shape: tuple[int, ...]) -> np.ndarray:
            return torch.cat(parts).numpy() if parts else np.empty(shape, dtype=np.int64)

        values = {name: float(value) for name, value in metrics.items()}
        ranks, top, pairs, clicks = (
            together(self._ranks, (0,)),
            together(self._top, (0, max(self.topk))),
            together(self._pairs, (0, 2)),
            together(self._clicks, (0, 2)),
        )
        return Judgement(values, ranks, top, pairs, clicks)


class _Unrounded:
    """A config that asks RecBole's metrics for all decimals."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return UNROUNDED if key == "metric_decimal_place" else self._config[key]


def unrounded_evaluator(config: Any) -> Evaluator:
    """RecBole's evaluator of the configured metrics, without rounding."""
    return Evaluator(_Unrounded(config))


def install_collector(trainer: Any) -> JudgeCollector:
    """Give a RecBole trainer the judge's collector, so that its own validation takes any ``topk`` too."""
    collector = JudgeCollector(trainer.config)
    trainer.eval_collector = collector
    return collector


def judge(trainer: Any, loader: Any, show_progress: bool = False) -> Judgement:
    """Evaluate a trainer's model as it stands on the rows of a loader.

    Args:
        trainer: a RecBole trainer that has :func:`install_collector` behind it.
        loader: the judged rows (:func:`recbole_llm.data.loaders.eval_loader`).
        show_progress: whether to show a progress bar.
    """
    init_seed(trainer.config["seed"], trainer.config["reproducibility"])  # the same sampled candidates for all
    collector = trainer.eval_collector
    collector.forget()
    rounded, trainer.evaluator = trainer.evaluator, unrounded_evaluator(trainer.config)
    try:
        metrics = trainer.evaluate(loader, load_best_model=False, show_progress=show_progress)
    finally:
        trainer.evaluator = rounded
    return collector.judgement(metrics)
