"""LMDH: relevance and dispersion by a linear model per user around that of all users (arXiv 2012.13245)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import TraditionalTrainer
from torch import Tensor, nn

from recbole_llm.data.catalog import read_categories
from recbole_llm.data.general import told_interactions
from recbole_llm.evaluation.categories import drop_common
from recbole_llm.rerank import category_vectors, greedy_list, interaction_vectors, rerank_scores
from recbole_llm.rerank.settings import LMDHSettings
from recbole_llm.rerank.space import unit_rows
from recbole_llm.stages import stage_seed
from recbole_llm.top_k import top_k

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

    from recbole_llm.settings.config import Config

CONSTANT, POPULARITY, HAD, TO_MEAN, TO_LAST = range(5)  # features of relevance; the products of vectors follow


class LMDH(SequentialRecommender):
    """Greedy lists by ``theta . x + beta . z``: features of an item after a history, distances to the list so far.

    Training histories are played back: a row's target has feedback 1, items drawn outside its history 0, and the newest
    items of the history are the list so far. All rows together give the prior, by ridge regression; each user's own
    rows move its weights away from there (``lmdh_ridge`` tells how reluctantly).

    Args:
        config: the resolved config.
        dataset: the training rows.

    Attributes:
        weights: float64 [users, features], theta and beta of each user; those of the padding user 0 are the prior,
            for histories without a known user.
    """

    trainer_class: ClassVar[type] = TraditionalTrainer
    """One pass over the rows, and no gradient."""
    vectors: Tensor
    popularity: Tensor
    members: Tensor
    weights: Tensor

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._settings = LMDHSettings.from_settings(config.final_config_dict)
        self._half, self._clip = bool(config["half_relevance"]), bool(config["clip_beta"])
        self._length, self.n_users = max(config["topk"]), dataset.user_num
        self._rng = np.random.default_rng(stage_seed(config["seed"], "lmdh", "negatives"))
        pairs = told_interactions(dataset)[:, :2]
        vectors = interaction_vectors(pairs, dataset.user_num, self.n_items, self._settings.width)
        counts = np.bincount(pairs[:, 1], minlength=self.n_items)
        popularity = np.log1p(counts)
        popularity = (popularity - popularity[1:].mean()) / (popularity[1:].std() or 1.0)
        popularity[0] = 0
        self.register_buffer("vectors", torch.from_numpy(unit_rows(vectors)))
        self.register_buffer("popularity", torch.from_numpy(popularity))
        field = config["category_field"]
        categories = read_categories(dataset, field) if field else None
        members = category_vectors(drop_common(categories)) if categories else np.zeros((self.n_items, 0))
        self.register_buffer("members", torch.from_numpy(members).float())
        self.nothing = nn.Parameter(torch.zeros(1))  # RecBole's trainer wants a weight to train
        self.n_relevance = 5 + self.vectors.shape[1]
        self.n_dispersion = 2 if self.members.shape[1] else 1
        width = self.n_relevance + self.n_dispersion
        self.register_buffer("weights", torch.zeros(self.n_users, width, dtype=torch.float64))
        self._gram = torch.zeros(self.n_users, width, width, dtype=torch.float64)
        self._moment = torch.zeros(self.n_users, width, dtype=torch.float64)
        self._is_settled = True

    # ---- learning

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Add a batch of rows to the sums that the weights follow from. Returns: a loss of 0, for RecBole's trainer."""
        histories, targets = interaction[self.ITEM_SEQ], interaction[self.ITEM_ID]
        candidates = torch.cat([targets[:, None], self._draw(histories, targets)], dim=1)
        newest = self._newest(histories, interaction[self.ITEM_SEQ_LEN])
        x = self._features(histories, interaction[self.ITEM_SEQ_LEN], candidates)
        z = (self._distances(candidates, newest) * (newest > 0)[:, None, :, None]).sum(dim=2)
        features = torch.cat([x, z], dim=2)
        users = interaction[self.USER_ID]
        self._gram.index_add_(0, users.cpu(), (features.transpose(1, 2) @ features).cpu())
        self._moment.index_add_(0, users.cpu(), features[:, 0].cpu())  # feedback is 1 for the target, 0 for the others
        self._is_settled = False
        return (0.0 * self.nothing).sum()

    def _draw(self, histories: Tensor, targets: Tensor) -> Tensor:
        """Items outside a row's history, that are not its target. Returns: int64 [rows, negatives]."""
        own = np.concatenate([histories.cpu().numpy(), targets.cpu().numpy()[:, None]], axis=1)
        drawn = self._rng.integers(1, self.n_items, (len(own), self._settings.negatives))
        for _ in range(100):
            taken = (drawn[:, :, None] == own[:, None]).any(axis=2)
            if not taken.any():
                break
            drawn[taken] = self._rng.integers(1, self.n_items, int(taken.sum()))
        return torch.from_numpy(drawn).to(targets.device)

    def _settle(self) -> None:
        """The weights of all users, of the sums so far."""
        if self._is_settled:
            return
        eye = torch.eye(self._gram.shape[1], dtype=torch.float64)
        gram, moment = self._gram.sum(dim=0), self._moment.sum(dim=0)
        prior = torch.linalg.solve(gram + self._settings.prior_ridge * eye, moment)
        rest = self._moment - self._gram @ prior
        own = torch.linalg.solve(self._gram + self._settings.ridge * eye, rest)
        self.weights.copy_(prior + own)
        self._is_settled = True

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See :class:`torch.nn.Module`; the weights follow from all rows seen so far."""
        self._settle()
        return super().state_dict(*args, **kwargs)

    # ---- features

    def _newest(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """The newest items of each history, the newest first. Returns: int64 [rows, window], 0 for padding."""
        index = lengths[:, None] - 1 - torch.arange(self._settings.window, device=lengths.device)
        return torch.where(index >= 0, histories.gather(1, index.clamp(min=0)), 0)

    def _context(self, histories: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mean vector of each history, and the vector of its newest item. Returns: float64 [rows, d], twice."""
        last = histories.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        mean = self.vectors[histories].sum(dim=1) / lengths.clamp(min=1)[:, None]
        return mean, self.vectors[last]

    def _features(self, histories: Tensor, lengths: Tensor, items: Tensor) -> Tensor:
        """x of some items after each history. Returns: float64 [rows, items, n_relevance]."""
        mean, last = self._context(histories, lengths)
        own = self.vectors[items]
        products = mean[:, None] * own
        had = (items[:, :, None] == histories[:, None]).any(dim=2).double()
        parts = [
            torch.ones_like(had),
            self.popularity[items],
            had,
            products.sum(dim=2),
            (last[:, None] * own).sum(dim=2),
        ]
        return torch.cat([torch.stack(parts, dim=2), products], dim=2)

    def _distances(self, items: Tensor, others: Tensor) -> Tensor:
        """By vectors (half the Euclidean distance) and, where there are some, by categories (Jaccard).

        Args:
            items: int64 [rows, n].
            others: int64 [rows, m].

        Returns:
            float64 [rows, n, m, n_dispersion].
        """
        a, b = self.vectors[items], self.vectors[others]
        squared = (a**2).sum(dim=2)[:, :, None] + (b**2).sum(dim=2)[:, None] - 2 * a @ b.transpose(1, 2)
        found = [squared.clamp(min=0).sqrt() / 2]
        if self.members.shape[1]:
            c, d = self.members[items], self.members[others]
            shared = c @ d.transpose(1, 2)
            either = c.sum(dim=2)[:, :, None] + d.sum(dim=2)[:, None] - shared
            found.append(1 - (shared / either.clamp(min=1)).double())
        table = torch.stack(found, dim=3)
        return table.masked_fill((items[:, :, None] == others[:, None])[..., None], 0.0)

    # ---- ranking

    def _weights_of(self, interaction: Interaction) -> Tensor:
        """Weights of each row's user; the prior for rows without a known user. Returns: float64 [rows, features]."""
        self._settle()
        if self.USER_ID in interaction:
            return self.weights[interaction[self.USER_ID]]
        return self.weights[:1].expand(len(interaction), -1)

    def _relevance(self, interaction: Interaction) -> Tensor:
        """``theta . x`` of all items. Returns: float64 [rows, items]."""
        histories, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        theta = self._weights_of(interaction)[:, : self.n_relevance]
        mean, last = self._context(histories, lengths)
        query = theta[:, TO_MEAN, None] * mean + theta[:, TO_LAST, None] * last + theta[:, 5:] * mean
        scores = theta[:, CONSTANT, None] + theta[:, POPULARITY, None] * self.popularity + query @ self.vectors.T
        had = torch.zeros_like(scores).scatter_(1, histories, 1.0)
        had[:, 0] = 0
        found: Tensor = scores + theta[:, HAD, None] * had
        return found

    def predict(self, interaction: Interaction) -> Tensor:
        """``theta . x`` of each row's item. Returns: float32 [rows]."""
        items = interaction[self.ITEM_ID][:, None]
        x = self._features(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], items)[:, 0]
        return (x * self._weights_of(interaction)[:, : self.n_relevance]).sum(dim=1).float()

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """``theta . x``, and above it the items of the greedy list. Returns: float64 [rows, items]."""
        scores = self._relevance(interaction)
        scores[:, 0] = -torch.inf
        beta = self._weights_of(interaction)[:, self.n_relevance :]
        if self._clip:
            beta = beta.clamp(min=0)
        n_best = min(self._settings.topn, self.n_items - 1)
        best = top_k(scores, n_best)[1].sort(dim=1).values
        for row in range(len(scores)):
            items = best[row]
            table = (self._distances(items[None], items[None])[0] * beta[row]).sum(dim=2)
            order, _ = greedy_list(scores[row, items], table, self._length, self._half)
            scores[row] = rerank_scores_of(scores[row], items, order)
        return scores


def rerank_scores_of(scores: Tensor, items: Tensor, order: Tensor) -> Tensor:
    """Scores with the chosen items first and the others of the best behind them, as they were.

    Args:
        scores: float64 [items].
        items: int64 [n], the best items, by id.
        order: int64 [k], positions in ``items``, the chosen ones first.
    """
    left = torch.ones(len(items), dtype=torch.bool, device=items.device)
    left[order] = False
    rest = items[left]
    rest = rest[torch.sort(scores[rest], descending=True, stable=True).indices]
    found: Tensor = rerank_scores(scores, torch.cat([items[order], rest]))
    return found
