"""D3's text-free assistant: another recommender's item probabilities, as probabilities of title tokens (2406.14900).

``q(v)`` is its probability of the items whose titles begin with ``v``, and ``L(t | v) = log(q(v t) / q(v))``; over a
whole title the ``L`` add up to the log-probability of its items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.errors import InputError
from recbole_llm.llm.trie import TitleTrie


@dataclass(frozen=True)
class Assistant:
    """Another recommender's opinion, one row per prompt.

    Args:
        item_scores: [prompts, items], any finite scores whose softmax over the titled items is `q`; -inf for an item
            that is out of the question. An untitled item's score is not read.
        lm_weight: ``a``, the language model's share, 0 to 1; 1 means no assistant.

    Example:
        >>> trie = TitleTrie([None, [5], [8]], eos_token_id=2)
        >>> assistant = Assistant(torch.tensor([[0.0, 1.0, 1.0]]), lm_weight=0.5)
        >>> assistant.title_log_probs(trie).exp().round(decimals=4).tolist()
        [[0.5, 0.5]]
    """

    item_scores: Tensor
    lm_weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.lm_weight <= 1:
            raise InputError("lm_weight", f"{self.lm_weight} is not allowed; give a number >= 0 and <= 1")

    def check(self, n_prompts: int) -> None:
        """Refuse the opinion on other prompts.

        Raises:
            ValueError: It has not one row per prompt.
        """
        if len(self.item_scores) != n_prompts:
            raise ValueError(f"{n_prompts} prompts, but the assistant scores {len(self.item_scores)}")

    def title_log_probs(self, trie: TitleTrie) -> Tensor:
        """log q of each title, summed over the items that share it: float64 [prompts, titles]."""
        if self.item_scores.ndim != 2 or self.item_scores.shape[1] != trie.n_items:
            raise ValueError(f"item_scores must be [prompts, {trie.n_items}], got {list(self.item_scores.shape)}")
        title_of_item = torch.from_numpy(trie.title_of_item).to(self.item_scores.device)
        titled = title_of_item >= 0
        scores = self.item_scores[:, titled].double()
        normaliser = scores.logsumexp(dim=1, keepdim=True)
        if not normaliser.isfinite().all():
            raise ValueError("the assistant's scores of the titled items are NaN, infinite, or all -inf")
        return grouped_logsumexp(scores - normaliser, title_of_item[titled], trie.n_titles)

    def node_log_ratios(self, trie: TitleTrie) -> Tensor:
        """``L`` of every trie node's token given the tokens before it: float64 [prompts, nodes], 0 at the root."""
        titles = self.title_log_probs(trie)
        mass = titles.new_full((len(titles), trie.n_nodes), -math.inf)
        depths, parents = (torch.from_numpy(array).to(mass.device) for array in (trie.depths, trie.parents))
        last = torch.from_numpy(trie.paths).to(mass.device).amax(dim=1)  # a path's numbers ascend
        mass[:, last] = titles
        for depth in range(trie.max_length, 0, -1):
            nodes = (depths == depth).nonzero().squeeze(1)
            above, group = parents[nodes].unique(return_inverse=True)
            mass[:, above] = grouped_logsumexp(mass[:, nodes], group, len(above))
        # Where q(v) = 0 nothing can follow, instead of 0 / 0.
        return (mass - mass[:, parents]).nan_to_num(nan=-math.inf, neginf=-math.inf)


def mixed(values: Tensor, opinion: Tensor, share: float) -> Tensor:
    """``share * values + (1 - share) * opinion``; with a share of 0 the opinion alone, whatever the values."""
    return share * values + (1 - share) * opinion if share else opinion


def grouped_logsumexp(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Log of the sum of exp over the columns of each group.

    Args:
        values: [rows, columns].
        groups: int64 [columns], from 0 to `n_groups` - 1.
        n_groups: Number of groups.

    Returns:
        [rows, n_groups]; -inf for a group without columns, or with nothing but -inf.
    """
    top = values.new_full((len(values), n_groups), -math.inf)
    top.scatter_reduce_(1, groups.expand(len(values), -1), values, "amax")
    shift = top.masked_fill(top == -math.inf, 0.0)
    sums = torch.zeros_like(top).index_add_(1, groups, (values - shift[:, groups]).exp())
    return sums.log() + shift
