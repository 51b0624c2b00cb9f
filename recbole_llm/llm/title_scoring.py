"""Scores of titles by the log-probabilities of the nodes of their trie (D3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_llm.hashing import hash_arrays, hash_tensors
from recbole_llm.llm.assistant import Assistant, grouped_logsumexp, mixed
from recbole_llm.llm.trie import TitleTrie


def title_scores(
    trie: TitleTrie,
    log_probs: Tensor,
    *,
    length_penalty: float = 0.0,
    renormalize: bool = False,
    assistant: Assistant | None = None,
) -> Tensor:
    """The scores of D3 (arXiv 2406.14900) from the log-probabilities of all trie nodes.

    With ``S(y)`` the sum over a title's ``n`` tokens, EOS included, a title's score is ``S(y) / n ** length_penalty``:
    0 is its log-probability, 1 the mean. With an assistant, ``S`` becomes ``a S(y) + (1 - a) log q(y)``.

    Args:
        trie: The titles.
        log_probs: [rows, nodes], log-probability of each node's token given the tokens before it; the root's is not
            read.
        length_penalty: Exponent of the number of tokens.
        renormalize: Whether probabilities are taken among the tokens that continue a title. The probabilities of all
            titles then sum to 1, and a token without alternative costs exactly nothing.
        assistant: The text-free assistant's scores of each row, if any.

    Returns:
        float64 [rows, items]; -inf for an item without a title.

    Example:
        >>> trie = TitleTrie([None, [5], [8]], eos_token_id=2)
        >>> title_scores(trie, torch.full((1, trie.n_nodes), -1.0)).tolist()  # each title and its EOS
        [[-inf, -2.0, -2.0]]
    """
    device = log_probs.device
    steps = log_probs.double().clone()
    steps[:, 0] = 0.0
    if renormalize:
        parents = torch.from_numpy(trie.parents[1:]).to(device)
        steps[:, 1:] -= grouped_logsumexp(steps[:, 1:], parents, trie.n_nodes)[:, parents]
    paths = torch.from_numpy(trie.paths).to(device)
    sums = steps.new_zeros(len(steps), trie.n_titles)
    for nodes in paths.unbind(dim=1):  # after a title's end stands the root
        sums += steps[:, nodes]
    if assistant is not None and assistant.lm_weight < 1:
        sums = mixed(sums, assistant.title_log_probs(trie).to(device), assistant.lm_weight)
    sums /= torch.from_numpy(trie.lengths).to(device).double() ** length_penalty
    untitled = sums.new_full((len(sums), 1), -math.inf)
    return torch.cat((sums, untitled), dim=1)[:, torch.from_numpy(trie.title_of_item).to(device)]


@dataclass(frozen=True)
class TitleScoring:
    """How the prompts of a call score titles; see :func:`title_scores`.

    Attributes:
        trie: The titles.
        length_penalty: Exponent of the number of tokens.
        renormalize: Whether probabilities are taken among the tokens that continue a title.
        assistant: The text-free assistant's scores of each prompt, if any.
    """

    trie: TitleTrie
    length_penalty: float
    renormalize: bool
    assistant: Assistant | None

    def scores(self, prompts: Sequence[int], log_probs: Tensor) -> Tensor:
        """Scores [prompts, items] of some prompts, by the log-probabilities [prompts, nodes] of their nodes."""
        assistant = self.assistant
        if assistant is not None:
            assistant = Assistant(assistant.item_scores[list(prompts)], assistant.lm_weight)
        options: dict[str, Any] = {"length_penalty": self.length_penalty, "renormalize": self.renormalize}
        return title_scores(self.trie, log_probs, **options, assistant=assistant)

    def facts(self, way: str) -> dict[str, Any]:
        """What the scores depend on besides model and prompts, as plain data; with the way they are computed."""
        trie, one = self.trie, self.assistant
        opinion = None if one is None else [one.lm_weight, hash_tensors({"": one.item_scores})]
        titles = hash_arrays(trie.tokens, trie.parents, trie.title_of_item)
        return {"titles": titles, "scores": [self.length_penalty, self.renormalize, way, opinion]}
