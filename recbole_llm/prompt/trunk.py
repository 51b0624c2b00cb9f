"""Trunks: which rows of a user are computed together, their history lengths, and their steps and passes.

The rows of a user whose prompts show everything from one item on share a trunk: prompt head and titles in their order;
each row hangs its own end of the prompt and its answers behind its last title. A history that grows beyond what a
prompt may show would restart in every row; so that rows keep sharing, such a user has several trunks, and a row sees
its history from the start of its trunk on: :func:`segments` says from where.

What shares a pass decides speed alone: a row in a trunk is computed exactly as the same row apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_llm.llm.rows import length_batches
from recbole_llm.prompt.batches import checked_batch_size

TREE_TOKENS = 512  # up to which trunks share a pass's line, and with it the prompt's head; attention looks at all pairs

Fits = Callable[[int, int], bool]
"""Whether the prompt of a row (its place) has room for so many items of its history."""
Tree = list[int]
"""Rows that are computed as one tree of tokens."""


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        trees: the rows of each of its lines.
        n_tokens: tokens that go through the LLM, padding not counted.
    """

    trees: list[Tree]
    n_tokens: int

    @property
    def rows(self) -> list[int]:
        """The rows of all its lines, in their order."""
        return [row for tree in self.trees for row in tree]


def segments(before: Sequence[int], longest: int, overlap: int, fits: Fits = lambda row, items: True) -> list[int]:
    """Where the history that each row of one user sees begins, so that rows next to each other begin alike.

    A row that would see all of its history, because it is short enough, does. Any other is in a segment: rows one after
    another that begin at the same item, so that the last sees at most ``longest`` items and the first at least
    ``overlap``. A segment takes as many rows as that allows, and begins as early as its last row allows: rows far apart
    lose little or nothing.

    Args:
        before: items of the user's sequence before each row's target, ascending.
        longest: items that a prompt may show.
        overlap: items that every row sees at least, if it has so many; at most ``longest``. With ``longest`` itself
            nothing is cut, and only rows that see all of their history share a trunk.
        fits: what else limits a prompt, such as its tokens; rows that do not fit are in shorter segments.

    Returns:
        Items of the user's sequence that each row does not see. A row for which even ``overlap`` items do not fit is
        not cut here.

    Example:
        >>> segments([1, 2, 3, 4, 5, 6, 7, 8], longest=4, overlap=2)
        [0, 0, 0, 0, 3, 3, 3, 4]
        >>> segments([3, 50, 51], longest=4, overlap=2)
        [0, 47, 47]
    """
    starts: list[int] = []
    while len(starts) < len(before):
        first = len(starts)
        whole = before[first] <= longest and fits(first, before[first])
        latest = 0 if whole else max(0, before[first] - overlap)
        last, start = first, max(0, before[first] - longest)
        for row in range(_last_within(before, latest + longest), first - 1, -1):
            found = _earliest(row, before[row], max(0, before[row] - longest), latest, fits)
            if found is not None:
                last, start = row, found
                break
        starts += [start] * (last + 1 - first)
    return starts


def _last_within(before: Sequence[int], limit: int) -> int:
    """The last row with at most so many items before its target."""
    return int(np.searchsorted(before, limit, side="right")) - 1


def _earliest(row: int, before: int, earliest: int, latest: int, fits: Fits) -> int | None:
    """The first start at which a row's history fits the prompt; None if there is none up to the latest."""
    if earliest > latest or not fits(row, before - latest):
        return None
    while earliest < latest:
        middle = (earliest + latest) // 2
        earliest, latest = (earliest, middle) if fits(row, before - middle) else (middle + 1, latest)
    return earliest


@dataclass(frozen=True)
class Trunks:
    """Rows by trunk.

    Attributes:
        rows: int64 arrays, the rows of each trunk, the shortest history first; every row is in one.
    """

    rows: list[np.ndarray]

    @classmethod
    def of(
        cls, users: Sequence[int] | np.ndarray, starts: Sequence[int] | np.ndarray, histories: Sequence[Sequence[int]]
    ) -> Trunks:
        """The rows of a user that see a history from the same item on, as far as one begins with the one before.

        Args:
            users: the user of each row.
            starts: what :func:`segments` gave for each row.
            histories: item ids that each row sees, oldest first.

        Example:
            >>> [rows.tolist() for rows in Trunks.of([7, 8, 7, 7], [0, 0, 0, 3], [[4, 5], [4], [4], [5, 6]]).rows]
            [[2, 0], [3], [1]]
        """
        trunks: list[list[int]] = []
        lengths = np.array([len(own) for own in histories])
        for row in np.lexsort((lengths, np.asarray(starts), np.asarray(users))).tolist():
            before = trunks[-1][-1] if trunks else row
            same = bool(trunks) and (users[before], starts[before]) == (users[row], starts[row])
            if same and list(histories[row][: len(histories[before])]) == list(histories[before]):
                trunks[-1].append(row)
            else:
                trunks.append([row])
        return cls([np.array(rows, dtype=np.int64) for rows in trunks])

    def only(self, chosen: np.ndarray) -> Trunks:
        """The trunks of some rows, in the same order; the rows keep their numbers.

        Args:
            chosen: int64, the rows.

        Example:
            >>> [rows.tolist() for rows in Trunks([np.array([2, 0]), np.array([3]), np.array([1])]).only([0, 1]).rows]
            [[0], [1]]
        """
        wanted = np.zeros(sum(map(len, self.rows)), dtype=bool)
        wanted[chosen] = True
        found = [rows[wanted[rows]] for rows in self.rows]
        return Trunks([rows for rows in found if len(rows)])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def of_row(self) -> np.ndarray:
        """The trunk of each row. Returns: int64 [rows]."""
        numbers: np.ndarray = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])
        return numbers[np.argsort(np.concatenate(self.rows), kind="stable")]


def trunk_steps(trunks: Trunks, batch_size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffle the trunks of one epoch, and cut their rows into optimiser steps.

    A step is ``batch_size`` rows, as it is of rows apart: a training has as many steps, and a step is a mean over as
    many targets. A trunk that reaches over the end of a step is computed in both, for its rows there.

    Args:
        trunks: trunks of all rows.
        batch_size: rows per optimiser step; the last step of the epoch may hold fewer.
        generator: draws the order; its state moves on, so the next epoch differs.

    Returns:
        ceil(rows / batch_size) arrays of rows, int64; every row once.

    Raises:
        InputError: The batch size is not positive.
    """
    order = generator.permutation(len(trunks))
    rows = np.concatenate([trunks.rows[trunk] for trunk in order])
    return [rows[start : start + batch_size] for start in range(0, len(rows), checked_batch_size(batch_size))]


def trunk_passes(
    rows: Sequence[int], trunk_of_row: np.ndarray, size: Callable[[Tree], int], n_head: int, max_tokens: int
) -> list[Pass]:
    """Cut the rows of one optimiser step into forward passes of at most ``max_tokens`` tokens, padding included.

    Rows of a trunk are one tree. A tree over the budget is halved until it fits, its trunk then computed in each part;
    small trees are joined, so that the prompt's head is computed once for them.

    Args:
        rows: rows of the step.
        trunk_of_row: int64, the trunk of every row there is.
        size: tokens of the tree of some rows.
        n_head: tokens that all prompts begin with.
        max_tokens: the budget; a row that alone exceeds it gets a pass of its own.

    Returns:
        The passes; every row is in one.
    """
    own: dict[int, Tree] = {}
    for row in rows:
        own.setdefault(int(trunk_of_row[row]), []).append(int(row))
    parts = [part for tree in own.values() for part in _within(tree, size, max_tokens)]
    trees = _joined(parts, n_head, min(TREE_TOKENS, max_tokens))
    batches = [[trees[index] for index in batch] for batch in length_batches([n for _, n in trees], max_tokens)]
    return [Pass([tree for tree, _ in batch], sum(n for _, n in batch)) for batch in batches]


def _within(tree: Tree, size: Callable[[Tree], int], max_tokens: int) -> list[tuple[Tree, int]]:
    """A tree with its size, or its halves where it exceeds the budget."""
    n_tokens = size(tree)
    if n_tokens <= max_tokens or len(tree) == 1:
        return [(tree, n_tokens)]
    middle = (len(tree) + 1) // 2
    return [part for half in (tree[:middle], tree[middle:]) for part in _within(half, size, max_tokens)]


def _joined(parts: Sequence[tuple[Tree, int]], n_head: int, limit: int) -> list[tuple[Tree, int]]:
    """Trees joined as long as they stay within a limit, the largest first; with the sizes of what came of it."""
    joined: list[tuple[Tree, int]] = []
    for tree, n_tokens in sorted(parts, key=lambda part: -part[1]):
        added = n_tokens - n_head
        position = next((index for index, (_, size) in enumerate(joined) if size + added <= limit), None)
        if position is None:
            joined.append((list(tree), n_tokens))
        else:
            joined[position] = (joined[position][0] + tree, joined[position][1] + added)
    return joined
