"""The tokens that continue a title after each token of an answer, looked up for all tokens at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_llm.llm.trie import TitleTrie


class LegalSets:
    """The children of the trie's nodes that the tokens of titles are predicted at, as flat lists on a device.

    Args:
        trie: the titles.
        device: where the lists are.

    Example:
        >>> sets = LegalSets(TitleTrie([None, [5, 6], [5, 7], [8]], eos_token_id=2))
        >>> titles = sets.titles([[5, 7, 2]])
        >>> token, column, counts = sets.of(torch.tensor([titles[0]] * 3), torch.tensor([0, 1, 2]))
        >>> token.tolist(), column.tolist(), counts.tolist()
        ([0, 0, 1, 1, 2], [5, 8, 6, 7, 2], [2, 2, 1])
    """

    def __init__(self, trie: TitleTrie, device: str | torch.device = "cpu") -> None:
        self._trie = trie
        before = np.concatenate([np.zeros((trie.n_titles, 1), dtype=np.int64), trie.paths[:, :-1]], axis=1)
        arrays = (before, trie.n_children, trie.child_starts[:-1], trie.tokens[trie.children])
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        self._before, self._counts, self._starts, self._tokens = tensors
        in_title = np.arange(trie.max_length) < trie.lengths[:, None]
        self._branching = ((trie.n_children[before] > 1) & in_title).sum(axis=1)

    def titles(self, answers: Sequence[Sequence[int]]) -> list[int]:
        """The title that each answer's tokens are; -1 where they are none."""
        found = (self._trie.title(answer) for answer in answers)
        return [-1 if title is None else title for title in found]

    def branching(self, titles: Sequence[int]) -> np.ndarray:
        """How many tokens of each title have several continuations; none of -1. Returns: int64 [titles]."""
        numbers = np.asarray(titles, dtype=np.int64)
        counts: np.ndarray = np.where(numbers < 0, 0, self._branching[numbers])
        return counts

    def of(self, titles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The legal tokens of n answer tokens.

        Args:
            titles: int64 [n], the title of each.
            steps: int64 [n], its position there.

        Returns:
            The answer token that each legal one belongs to, ascending; its id; and int64 [n], how many each has.
        """
        nodes = self._before[titles, steps]
        counts = self._counts[nodes]
        token = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        offset = self._starts[nodes] - (counts.cumsum(0) - counts)
        return token, self._tokens[torch.arange(len(token), device=nodes.device) + offset[token]], counts
