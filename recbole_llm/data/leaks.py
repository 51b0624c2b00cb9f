"""Checks for what can inflate metrics: targets in histories, times that run backwards, duplicates.

Plain arrays in, findings out. A finding that warns should be looked into before a number of this data set is believed;
one that does not is a fact worth knowing. On data without faults nothing warns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

N_EXAMPLES = 5
FEW = 0.01  # share from which cold targets and untitled ones warn
POPULAR = 0.3  # share of the targets from which ten items make a split easy
LONG = 4  # interactions from which two users with the same sequence are no coincidence


@dataclass(frozen=True)
class AuditFinding:
    """Outcome of one check.

    Attributes:
        check: name of the check.
        warns: whether it should be looked into.
        count: number of things that were found.
        total: number of things that were checked.
        text: what was found, and what to do.
        examples: some of them, in outside ids.

    Example:
        >>> print(AuditFinding("repeats", True, 1, 3, "rows repeat another one; drop them", ("u1",)))
        repeats: 1 of 3 rows repeat another one; drop them (such as u1)
        >>> print(AuditFinding("repeats", False, 0, 3, "rows repeat another one; drop them"))
        repeats: 0 of 3 rows repeat another one
    """

    check: str
    warns: bool
    count: int
    total: int
    text: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f" (such as {', '.join(self.examples)})" if self.examples else ""
        text = self.text if self.count else re.split("[:;] ", self.text, maxsplit=1)[0]  # without what to do
        return f"{self.check}: {self.count:,} of {self.total:,} {text}{shown}"


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split.

    Attributes:
        users: int64 [rows].
        targets: int64 [rows].
        histories: int64 [any] for each row, oldest first.
        times: float64 [rows], of the targets; None where the data have none.
        user_names: outside id of each user, for examples.
        item_names: outside id of each item.
    """

    users: np.ndarray
    targets: np.ndarray
    histories: Sequence[np.ndarray]
    times: np.ndarray | None
    user_names: Sequence[str]
    item_names: Sequence[str]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.targets)


def check_interactions(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, user_names: Sequence[str]
) -> Iterator[AuditFinding]:
    """Lines that stand twice, and users who did the same in the same order.

    Args:
        users: int64 [interactions], each user's in the order of time.
        items: int64 [interactions].
        times: float64 [interactions]; None where the data have none.
        user_names: outside id of each user.
    """
    columns = [users, items] if times is None else [users, items, times]
    lines = list(zip(*(column.tolist() for column in columns), strict=True))
    twice = len(lines) - len(set(lines))
    yield AuditFinding(
        "duplicate interactions",
        bool(twice) and times is not None,
        twice,
        len(lines),
        "interactions repeat one of the same user, item" + (" and time; set rm_dup_inter" if times is not None else ""),
    )
    order = np.argsort(users, kind="stable")
    found, starts = np.unique(users[order], return_index=True)
    sequences = dict(zip(found.tolist(), np.split(items[order], starts[1:]), strict=True))
    twins = _groups((tuple(own.tolist()), user) for user, own in sequences.items() if len(own) >= LONG)
    yield AuditFinding(
        "duplicate users",
        bool(twins),
        sum(len(group) - 1 for group in twins),
        len(found),
        "users have the interactions of another one, in the same order: one of a pair teaches the other's target",
        _named(twins, user_names),
    )


def check_items(
    titles: Sequence[str | None], attributes: Sequence[Sequence[str]], item_names: Sequence[str]
) -> Iterator[AuditFinding]:
    """Items that cannot be told apart, and items without a title.

    Args:
        titles: titles of all items, the padding item first.
        attributes: what else is known of each.
        item_names: outside id of each item.
    """
    n_items = len(titles) - 1
    named = [(title, item) for item, title in enumerate(titles) if title]
    same_title = _groups(named)
    yield AuditFinding(
        "duplicate titles",
        bool(same_title),
        sum(len(group) - 1 for group in same_title),
        n_items,
        "items have the title of another one, and an LLM cannot tell them apart; see title_with",
        _named(same_title, item_names),
    )
    if any(attributes):
        twins = _groups(((title, *attributes[item]), item) for title, item in named)
        yield AuditFinding(
            "duplicate items",
            bool(twins),
            sum(len(group) - 1 for group in twins),
            n_items,
            "items have the title and all attributes of another one: probably one item under several ids",
            _named(twins, item_names),
        )
    untitled = n_items - len(named)
    yield AuditFinding(
        "untitled items",
        untitled > FEW * n_items,
        untitled,
        n_items,
        "items have no title: they are in no prompt, and a target among them is a miss for every LLM",
    )


def check_rows(train: SplitRows, evaluated: SplitRows, name: str) -> Iterator[AuditFinding]:
    """Targets that the history gives away, times that run backwards, unlearnable targets, and an easy split.

    Args:
        train: the training rows.
        evaluated: the validation or test rows.
        name: name of that split.
    """
    n = len(evaluated)
    pairs = list(zip(evaluated.targets, evaluated.histories, strict=True))
    inside = np.array([target in own for target, own in pairs], dtype=bool)
    last = np.array([len(own) > 0 and own[-1] == target for target, own in pairs], dtype=bool)
    yield AuditFinding(
        f"target in history, {name}",
        int(last.sum()) > FEW * n,
        int(inside.sum()),
        n,
        f"targets stand in their own history, {int(last.sum()):,} of them as its newest item: copying is right there",
        _some(evaluated.users[inside], evaluated.user_names),
    )
    if train.times is not None and evaluated.times is not None:
        latest = _latest(train)
        late = np.array([latest.get(int(user), -np.inf) > time for user, time in _pairs(evaluated)], dtype=bool)
        yield AuditFinding(
            f"training after {name}",
            bool(late.any()),
            int(late.sum()),
            n,
            f"{name} targets are older than a training target of the same user: the split is not one in time",
            _some(evaluated.users[late], evaluated.user_names),
        )
    learnt = np.unique(np.concatenate([train.targets, *train.histories]) if len(train) else train.targets)
    cold = ~np.isin(evaluated.targets, learnt)
    yield AuditFinding(
        f"cold targets, {name}",
        int(cold.sum()) > FEW * n,
        int(cold.sum()),
        n,
        "targets are in no training row: models of ids cannot rank them but by chance, models of text can",
        _some(evaluated.targets[cold], evaluated.item_names),
    )
    ten = np.argsort(-np.bincount(train.targets, minlength=1), kind="stable")[:10]
    popular = np.isin(evaluated.targets, ten)
    by_chance = 10 / max(len(evaluated.item_names) - 1, 10)
    yield AuditFinding(
        f"popularity, {name}",
        int(popular.sum()) > max(POPULAR, 3 * by_chance) * n,
        int(popular.sum()),
        n,
        "targets are among the ten most frequent ones of training: recommending the same ten to all is right there",
    )


def check_prompts(train: Sequence[tuple[str, int]], evaluated: Sequence[tuple[str, int]], name: str) -> AuditFinding:
    """Rows of a split that a training row answers word for word.

    Args:
        train: text of the prompt, and target's title's representative, of the training rows.
        evaluated: text of the prompt, and target's title's representative, of validation or test rows.
        name: name of that split.
    """
    known = set(train)
    equal = sum(row in known for row in evaluated)
    return AuditFinding(
        f"equal prompts, {name}",
        equal > FEW * len(evaluated),
        equal,
        len(evaluated),
        "rows have the prompt and the answer of a training row: remembering it is right there",
    )


def check_lengths(n_shortened: int, n_prompts: int) -> AuditFinding:
    """Prompts longer than ``max_prompt_tokens``.

    Args:
        n_shortened: prompts that lost titles or a part of one.
        n_prompts: number of prompts that were checked.
    """
    return AuditFinding(
        "truncated prompts",
        n_shortened > 0,
        n_shortened,
        n_prompts,
        "prompts exceed max_prompt_tokens and lose their oldest titles; raise it, or lower MAX_ITEM_LIST_LENGTH",
    )


def _groups(keyed: Iterable[tuple[Hashable, int]]) -> list[list[int]]:
    """Numbers that share a key, where at least two do."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for key, number in keyed:
        found[key].append(number)
    return [group for group in found.values() if len(group) > 1]


def _named(groups: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(" = ".join(str(names[number]) for number in group[:3]) for group in groups[:N_EXAMPLES])


def _some(numbers: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(names[number]) for number in np.unique(numbers)[:N_EXAMPLES])


def _pairs(rows: SplitRows) -> Iterator[tuple[int, float]]:
    times = rows.times if rows.times is not None else np.full(len(rows), np.inf)
    yield from zip(rows.users.tolist(), times.tolist(), strict=True)


def _latest(rows: SplitRows) -> dict[int, float]:
    """Time of each user's newest target."""
    latest: dict[int, float] = {}
    for user, time in _pairs(rows):
        latest[user] = max(time, latest.get(user, -np.inf))
    return latest
