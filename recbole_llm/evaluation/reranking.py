"""Re-ranking of a trained model's lists: item features, learned weights, choice of the trade-off."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llm.data.catalog import read_categories
from recbole_llm.data.general import told_interactions
from recbole_llm.data.rows import N_BEFORE, Rows, row_pairs
from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.evaluation.categories import drop_common
from recbole_llm.grounding.rank_metrics import ndcg_at
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.registry import find_choice
from recbole_llm.report.rerank_plot import plot_trade_off
from recbole_llm.rerank import (
    ItemSpace,
    Reranker,
    RerankExample,
    RerankSettings,
    category_vectors,
    interaction_vectors,
    reordered,
    rerank_scores,
    standardised,
)
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset, SequentialDataset

    from recbole_llm.evaluation.base import Evaluation
    from recbole_llm.settings.config import Config

FILE, VECTORS, PLOT = "rerank.json", "rerank.npz", "rerank.png"
BATCH = 256
log = logging.getLogger(__name__)


class Reranking:
    """The axis ``rerank`` of one trained model.

    Args:
        ranker: ranker of the axis.
        length: items that are put first; the others of the best follow in their old order.
        trade_off: ``rerank_lambda``; one of several until :meth:`choose` has chosen.
        seed: seed of what is drawn.

    Attributes:
        curve: what each value of ``rerank_lambda`` does on the validation rows, and none (``lambda`` null).
    """

    def __init__(self, ranker: Reranker, length: int, trade_off: float, seed: int = 0) -> None:
        self.ranker, self.length, self.trade_off, self.seed = ranker, length, trade_off, seed
        self.curve: list[dict[str, Any]] = []

    @classmethod
    def make(cls, config: Config, rows: Rows, model: Any) -> Reranking:
        """The re-ranking that a config asks for, learnt where it learns.

        Args:
            config: the resolved config.
            rows: the rows of the run.
            model: trained.
        """
        settings = RerankSettings.from_settings(config.final_config_dict)
        space = item_space(config, settings, rows, model)
        kind = cast("type[Reranker]", find_choice("rerank", settings.rerank))
        found = cls(kind(settings, space), max(config["topk"]), settings.trade_offs[0], config["seed"])
        if kind.learns:
            found.ranker.learn(found._examples(config, settings, rows, model))
            log.info("rerank=%s learnt %s", settings.rerank, found.ranker.facts())
        return found

    # ---- lists

    def apply(self, base: Ranking, targets: np.ndarray | None = None, trade_off: float | None = None) -> Ranking:
        """A ranking with its best ``rerank_topn`` items in the new order.

        Args:
            base: at least as long as what is re-ranked.
            targets: int64 [rows]; None for none.
            trade_off: by default the chosen one.

        Returns:
            The same items; scores are rewritten so that they fall with the rank, as
            :func:`recbole_llm.rerank.rerank_scores` does.
        """
        share, topn = self.trade_off if trade_off is None else trade_off, self.ranker.settings.rerank_topn
        items, scores, ranks = base.top_items.copy(), base.top_scores.copy(), base.ranks.copy()
        for row in range(len(base)):
            n = min(int(((items[row] > 0) & np.isfinite(scores[row])).sum()), topn)
            order = reordered(self.ranker, items[row, :n], scores[row, :n], self.length, share)
            scores[row, :n] = rerank_scores(scores[row, :n], order)[order]
            items[row, :n] = items[row, :n][order]
            if targets is not None and 0 <= ranks[row] < n:
                ranks[row] = int(np.flatnonzero(order == ranks[row])[0])
        return Ranking(ranks, items, scores)

    # ---- which trade-off

    def choose(
        self,
        listed: Mapping[str, Evaluation],
        before: Mapping[str, Evaluation],
        again: Callable[[Evaluation, float], Evaluation],
    ) -> None:
        """Take the value of ``rerank_lambda`` that is best on the validation rows, and note what each does.

        The best has the highest NDCG among those whose lists reach ``rerank_min_distance``; where none does, the one
        with the longest distance. The first of equals wins.

        Args:
            listed: what the model did, with lists to put in order.
            before: the same, complete, without re-ranking.
            again: an evaluation with its lists in the order of a trade-off.
        """
        if "valid" not in listed:
            return
        settings = self.ranker.settings
        self.curve = [self._point(None, before["valid"])]
        self.curve += [self._point(share, again(listed["valid"], share)) for share in settings.trade_offs]
        tried = self.curve[1:]
        least = settings.rerank_min_distance
        enough = [point for point in tried if least is None or point["distance"] >= least]
        best = max(enough or tried, key=lambda point: point["ndcg" if enough else "distance"])
        if not enough:
            log.warning("rerank_min_distance: no value of rerank_lambda reaches %s; the farthest is taken", least)
        self.trade_off = float(best["lambda"])
        if len(tried) > 1:
            for point in self.curve:
                log.info("rerank_lambda=%(lambda)s: ndcg %(ndcg).4f, distance %(distance).4f", point)

    def _point(self, share: float | None, evaluation: Evaluation) -> dict[str, Any]:
        ndcg = float(ndcg_at(evaluation.ranks, self.length).mean())
        distance = mean_distance(self.ranker.space, evaluation.top_items[:, : self.length])
        return {"lambda": share, "ndcg": ndcg, "distance": distance}

    # ---- what is learnt

    def _examples(self, config: Config, settings: RerankSettings, rows: Rows, model: Any) -> list[RerankExample]:
        """The last step of training histories: what came next, what did not, and the items before."""
        last = earlier_rows(rows, settings.rerank_rows, stage_seed(self.seed, "rerank", "rows"))
        rng = np.random.default_rng(stage_seed(self.seed, "rerank", "negatives"))
        dataset, examples = rows.whole, []
        suffix = config["LIST_SUFFIX"]
        for start in range(0, len(last), BATCH):
            part = last[torch.arange(start, min(start + BATCH, len(last)))]
            scores = all_scores(model, part.to(model.device), dataset.item_num).double().cpu()
            best = rank_scores(scores, None, settings.rerank_topn).top_scores
            lists, lengths = part[dataset.iid_field + suffix].numpy(), part[dataset.item_list_length_field].numpy()
            for row, target in enumerate(part[dataset.iid_field].tolist()):
                history = lists[row, : lengths[row]]
                outside = np.setdiff1d(np.arange(1, dataset.item_num), [*history, target])
                drawn = rng.choice(outside, min(settings.rerank_negatives, len(outside)), replace=False)
                items = np.array([target, *drawn], dtype=np.int64)
                own = standardised(scores[row, items].numpy(), best[row][np.isfinite(best[row])])
                examples.append(RerankExample(items, own, history[-settings.rerank_window :]))
        return examples

    # ---- kept

    def write(self, folder: Path) -> None:
        """Leave in a run folder what :meth:`read` reads, and a picture of several trade-offs."""
        settings = self.ranker.settings
        np.savez_compressed(folder / VECTORS, vectors=self.ranker.space.vectors)
        facts = {"settings": asdict(settings), "distance": self.ranker.space.distance, "length": self.length}
        chosen = {"lambda": self.trade_off, "learnt": self.ranker.facts(), "curve": self.curve}
        write_json(folder / FILE, {**facts, **chosen})
        if len(self.curve) > 2:
            plot_trade_off(folder / PLOT, self.curve, self.trade_off, title=f"{folder.name}: {settings.rerank}")

    @classmethod
    def read(cls, folder: Path) -> Reranking | None:
        """The re-ranking that a run left in its folder; None where it left none."""
        if not (folder / FILE).is_file():
            return None
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
        settings = RerankSettings(**facts["settings"])
        with np.load(folder / VECTORS) as found:
            space = ItemSpace(found["vectors"], facts["distance"])
        ranker = cast("type[Reranker]", find_choice("rerank", settings.rerank))(settings, space)
        ranker.restore(facts["learnt"])
        reranking = cls(ranker, facts["length"], facts["lambda"])
        reranking.curve = facts["curve"]
        return reranking


def mean_distance(space: ItemSpace, items: np.ndarray) -> float:
    """Mean over lists of the mean distance of their pairs; lists of fewer than two items count as 0.

    Args:
        space: space of the items.
        items: int64 [rows, k], 0 where there is no item.
    """
    found = []
    for row in items:
        real = row[row > 0]
        n = len(real)
        found.append(float(space.distances(real).sum() / (n * (n - 1))) if n > 1 else 0.0)
    return float(np.mean(found)) if found else 0.0


def item_space(config: Config, settings: RerankSettings, rows: Rows, model: Any) -> ItemSpace:
    """What items are compared by: categories, the LLM's embeddings of titles, or vectors of what users did."""
    wanted, field = settings.rerank_features, config["category_field"]
    categories = read_categories(rows.whole, field) if field and wanted in ("auto", "categories") else None
    if categories is not None:
        vectors = category_vectors(drop_common(categories))
    elif wanted != "id" and config.is_llm:
        vectors = np.asarray(model.item_embeddings, dtype=np.float64)
    else:
        vectors = _id_vectors(rows, model)
    return ItemSpace(vectors, settings.rerank_distance)


def _id_vectors(rows: Rows, model: Any) -> np.ndarray:
    """The model's own item embeddings; else the first singular vectors of who had what in the training rows."""
    n_items = rows.whole.item_num
    embedding = getattr(model, "item_embedding", None)
    if isinstance(embedding, nn.Embedding) and embedding.num_embeddings >= n_items:
        return embedding.weight[:n_items].detach().double().cpu().numpy()
    return interaction_vectors(training_pairs(rows), rows.whole.user_num, n_items)


def training_pairs(rows: Rows) -> np.ndarray:
    """Users and items of what is trained on, targets and histories. Returns: int64 [pairs, 2]."""
    train = rows.train
    if train.iid_field + train.config["LIST_SUFFIX"] in train.inter_feat:
        return told_interactions(train)[:, :2]
    feats = train.inter_feat
    return np.stack([feats[train.uid_field].numpy(), feats[train.iid_field].numpy()], axis=1)


def earlier_rows(rows: Rows, count: int, seed: int) -> Interaction:
    """Rows of validation, or of test where these leave none, one step earlier: the newest item is the target.

    Only histories of training interactions alone are taken. Of several rows of a user that are held out (a split in
    time, or by shares), the later ones' histories hold targets of the earlier ones.

    Args:
        rows: the rows of the run.
        count: how many, at most.
        seed: draws them.

    Raises:
        InputError: there is no such history of two items.
    """
    for source in (rows.valid, rows.test):
        lengths = source.inter_feat[source.item_list_length_field].numpy()
        usable = np.flatnonzero((lengths > 1) & _is_before_split(rows, source))
        if len(usable):
            chosen = np.random.default_rng(seed).permutation(usable)[:count]
            return without_last(source, np.sort(chosen))
    raise InputError(
        "rerank",
        f"{rows.whole.config['rerank']} learns from histories of two training interactions or more, and no evaluated "
        "row has one; choose mmr",
        kind="data",
    )


def _is_before_split(rows: Rows, source: SequentialDataset) -> np.ndarray:
    """Whether a row's history is of interactions before the split. Returns: bool [rows]."""
    whole, known = rows.whole, rows.whole.pairs_before
    users = row_pairs(source)[:, 0]
    found: np.ndarray
    if whole.config["benchmark_filename"] is None:
        n_before = np.bincount(known[:, 0], minlength=whole.user_num)
        found = source.inter_feat[N_BEFORE].numpy() <= n_before[users]
    else:
        items = source.inter_feat[source.iid_field + source.config["LIST_SUFFIX"]].numpy()
        is_known = np.isin(users[:, None] * whole.item_num + items, known[:, 0] * whole.item_num + known[:, 1])
        found = (is_known | (items == 0)).all(axis=1)
    return found


def without_last(source: Dataset, chosen: np.ndarray) -> Interaction:
    """Rows one step earlier: the newest item of each history is the target.

    Args:
        source: rows.
        chosen: int64 [any], which of them; their histories have two items or more.

    Returns:
        All list columns one shorter.
    """
    suffix = source.config["LIST_SUFFIX"]
    part = source.inter_feat[torch.from_numpy(chosen)]
    lengths = part[source.item_list_length_field]
    index, last = torch.arange(len(part)), lengths - 1
    columns = {name: part[name].clone() for name in part.columns}
    for name in [name for name in columns if name.endswith(suffix)]:
        own = name.removesuffix(suffix)
        if own in columns:
            columns[own] = columns[name][index, last].clone()
        columns[name][index, last] = 0
    columns[source.item_list_length_field] = last
    return Interaction(columns)


@torch.no_grad()
def all_scores(model: Any, rows: Interaction, n_items: int) -> torch.Tensor:
    """Scores of all items by any model.

    Args:
        model: in eval mode; one that scores pairs only is asked for all pairs.
        rows: on the model's device.
        n_items: items, padding included.

    Returns:
        [rows, items]; -inf for the padding item.
    """
    model.eval()
    try:
        scores = model.full_sort_predict(rows)
    except NotImplementedError:
        pairs = rows.repeat_interleave(n_items)
        pairs.update(Interaction({model.ITEM_ID: torch.arange(n_items, device=model.device).repeat(len(rows))}))
        scores = model.predict(pairs)
    scores = torch.as_tensor(scores).view(len(rows), n_items).clone()
    scores[:, 0] = -torch.inf
    return scores
