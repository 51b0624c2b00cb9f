"""The catalogue's titles as a prefix tree of tokens, in arrays.

Every title ends in EOS, so that one title can be a prefix of another. Nodes are numbered depth first, children by
token: what lies under a node is one interval of nodes, the titles under it one interval of titles, and a node's parent
has a lower number than the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import count

import numpy as np
import torch
from torch import Tensor


class TitleTrie:
    """Prefix tree over the response tokens of all titles.

    Items whose tokens are equal share one title, and one leaf. A title is a different sequence of tokens; titles are
    numbered in the order of their sequences.

    Args:
        token_ids_per_item: Response tokens of each item, with or without EOS at the end; None or no token for an item
            that has no title (the padding item among them).
        eos_token_id: Token that ends a response.

    Attributes:
        eos_token_id: As given.
        n_items: Items, untitled ones included.
        n_titles: Different token sequences.
        max_length: Tokens of the longest title, EOS included.
        tokens: int64 [nodes], the token that leads to a node; -1 for the root, node 0.
        parents: int64 [nodes]; the root is its own parent.
        depths: int64 [nodes], number of tokens that lead to a node.
        ends: int64 [nodes]; the nodes from `i` up to `ends[i]` (exclusive) are node `i` and what lies under it.
        children: int64 [nodes - 1], all nodes but the root, those of one parent side by side and by ascending token.
        child_starts: int64 [nodes + 1]; the children of node `i` are `children[child_starts[i] : child_starts[i + 1]]`.
        paths: int64 [titles, max_length], the nodes of each title from the first token to EOS, then 0.
        lengths: int64 [titles], tokens of each title, EOS included.
        title_of_item: int64 [items], -1 for an item without a title.
        first_titles: int64 [nodes], the lowest title under a node.

    Raises:
        ValueError: No item has a title, a token id is negative, or EOS stands inside a title.

    Example:
        >>> trie = TitleTrie([None, [5, 6], [5, 7], [8]], eos_token_id=2)
        >>> trie.allowed([]), trie.allowed([5]), trie.allowed([8])
        ([5, 8], [6, 7], [2])
        >>> trie.items([5, 7])
        [2]
    """

    def __init__(self, token_ids_per_item: Sequence[Sequence[int] | None], eos_token_id: int) -> None:
        self.eos_token_id = int(eos_token_id)
        self.n_items = len(token_ids_per_item)
        table, self.title_of_item = self._title_table(token_ids_per_item)
        self.n_titles, self.max_length = table.shape
        self.lengths = (table >= 0).sum(axis=1)
        self._grow(table)
        order = np.argsort(self.parents[1:], kind="stable") + 1  # within a parent, by number: ascending token
        n_children = np.bincount(self.parents[1:], minlength=self.n_nodes)
        self.children, self.child_starts = order, np.concatenate(([0], n_children.cumsum()))
        self._items = np.argsort(self.title_of_item, kind="stable")  # by title, then by item; untitled items first
        self._item_starts = np.searchsorted(self.title_of_item[self._items], np.arange(self.n_titles + 1))
        self._hash_prefixes(table)
        self._title_of = {tuple(token for token in row if token >= 0): i for i, row in enumerate(table.tolist())}

    @property
    def n_nodes(self) -> int:
        """Number of different beginnings of titles, the empty one and whole titles included."""
        return len(self.tokens)

    @property
    def n_children(self) -> np.ndarray:
        """int64 [nodes]; 0 only where a title has ended."""
        return np.diff(self.child_starts)

    def allowed(self, prefix_ids: Sequence[int]) -> list[int]:
        """The tokens that continue a beginning of titles, ascending; none after EOS, or if no title begins so."""
        node = int(self.find(np.array(prefix_ids, dtype=np.int64)[None])[0])
        if node < 0:
            return []
        children = self.children[self.child_starts[node] : self.child_starts[node + 1]]
        return [int(token) for token in self.tokens[children]]

    def items(self, token_ids: Sequence[int]) -> list[int]:
        """The items that a finished sequence names, ascending; EOS may be left out. Empty if it is no title."""
        title = self.title(token_ids)
        if title is None:
            return []
        return [int(item) for item in self._items[self._item_starts[title] : self._item_starts[title + 1]]]

    def title(self, token_ids: Sequence[int]) -> int | None:
        """The title of a finished sequence, with or without EOS; None if it is not a title."""
        tokens = tuple(int(token) for token in token_ids)
        return self._title_of.get(tokens if tokens[-1:] == (self.eos_token_id,) else (*tokens, self.eos_token_id))

    def find(self, prefixes: np.ndarray) -> np.ndarray:
        """Nodes of many prefixes of one length.

        Args:
            prefixes: int64 [rows, tokens].

        Returns:
            int64 [rows], -1 where no title begins so.
        """
        return self._index.find(torch.from_numpy(prefixes)).numpy()

    @cached_property
    def _index(self) -> PrefixIndex:
        return PrefixIndex(self)

    def _title_table(self, token_ids_per_item: Sequence[Sequence[int] | None]) -> tuple[np.ndarray, np.ndarray]:
        """Different titles in lexicographic order, [titles, max_length] with -1 behind EOS; and each item's row."""
        titled: list[int] = []
        rows: list[list[int]] = []
        for item, token_ids in enumerate(token_ids_per_item):
            tokens = [] if token_ids is None else [int(token) for token in token_ids]
            tokens = tokens[:-1] if tokens[-1:] == [self.eos_token_id] else tokens
            if not tokens:
                continue
            if self.eos_token_id in tokens or min(tokens) < 0:
                raise ValueError(f"the title of item {item} holds EOS before its end, or a negative token id")
            titled.append(item)
            rows.append([*tokens, self.eos_token_id])
        if not rows:
            raise ValueError("no item has a title: every token sequence is empty")
        table = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
        table[np.arange(table.shape[1]) < np.array([len(row) for row in rows])[:, None]] = np.concatenate(rows)
        table, title_of_row = np.unique(table, axis=0, return_inverse=True)
        title_of_item = np.full(self.n_items, -1, dtype=np.int64)
        title_of_item[titled] = title_of_row.reshape(-1)
        return table, title_of_item

    def _grow(self, table: np.ndarray) -> None:
        """Nodes in depth-first order: in sorted titles, a title adds what it does not share with the one before it."""
        differs = np.ones(table.shape, dtype=bool)
        differs[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
        is_new = differs & (table >= 0)
        numbers = np.where(is_new, is_new.cumsum().reshape(table.shape), 0)
        # What a title shares with the one before it is the last node made at that depth.
        self.paths = np.where(table >= 0, np.maximum.accumulate(numbers, axis=0), 0)
        above = np.concatenate((np.zeros((len(table), 1), dtype=np.int64), self.paths[:, :-1]), axis=1)
        titles, columns = is_new.nonzero()
        self.tokens = np.concatenate(([-1], table[is_new]))
        self.parents = np.concatenate(([0], above[is_new]))
        self.depths = np.concatenate(([0], columns + 1))
        self.first_titles = np.concatenate(([0], titles))
        self.ends = np.arange(1, len(self.tokens) + 1)
        for depth in range(self.max_length, 0, -1):
            nodes = np.flatnonzero(self.depths == depth)
            np.maximum.at(self.ends, self.parents[nodes], self.ends[nodes])

    def _hash_prefixes(self, table: np.ndarray) -> None:
        """A different 64-bit number for every node: the sum of its path's tokens times random odd coefficients."""
        titles, columns = self.first_titles[1:], self.depths[1:] - 1
        for seed in count():
            coefficients = np.random.default_rng(seed).integers(2**62, size=self.max_length) * 2 + 1
            sums = ((table + 1) * coefficients).cumsum(axis=1)  # modulo 2^64
            self.hashes = np.concatenate(([0], sums[titles, columns]))
            if len(np.unique(self.hashes)) == self.n_nodes:
                self.hash_coefficients = coefficients
                return


class PrefixIndex:
    """Looks up the nodes of many prefixes at once, on the device of the prefixes.

    One hash per prefix and one binary search, however long the prefix is; the node's own tokens are compared
    afterwards, so the answer is certain.

    Args:
        trie: The titles.
        device: Where the prefixes are.
    """

    def __init__(self, trie: TitleTrie, device: str | torch.device = "cpu") -> None:
        order = np.argsort(trie.hashes)
        arrays = (trie.hash_coefficients, trie.hashes[order], order, trie.first_titles[order], trie.tokens[trie.paths])
        tensors = (torch.tensor(array, device=device) for array in arrays)
        self._coefficients, self._hashes, self._nodes, self._first_titles, self._titles = tensors

    def find(self, prefixes: Tensor, missing: int = -1) -> Tensor:
        """Nodes int64 [rows] of the prefixes int64 [rows, tokens]; `missing` where no title begins so."""
        length = prefixes.shape[1]
        if length > len(self._coefficients):
            return prefixes.new_full((len(prefixes),), missing)
        hashes = ((prefixes + 1) * self._coefficients[:length]).sum(dim=1)
        index = torch.searchsorted(self._hashes, hashes).clamp_(max=len(self._hashes) - 1)
        known = (self._titles[self._first_titles[index], :length] == prefixes).all(dim=1) & (
            self._hashes[index] == hashes
        )
        return torch.where(known, self._nodes[index], missing)
