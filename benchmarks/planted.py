"""A planted world: users, items and titles by known rules, so that a method's claim is true or false by construction.

    python benchmarks/planted.py --out=worlds                        writes worlds/planted/planted.{inter,item,json}
    python benchmarks/planted.py --out=worlds/groups --n_groups=4    the same world with four user groups
    python run_recbole_llm.py --model=Pop,BIGRec --dataset=planted --data_path=worlds

**Items.** A title states brand, category, series and number ("Aldor Strategy Chronicles 3"); all titles are distinct.
An item also has a position in its category, of which its text says nothing: popularity and succession go by position.

**Rules.** A user's first category is uniform. The next category is ``rule(category)`` with probability ``p_category``,
else uniform over all others. Where the rule was followed, the item is the last item's exact successor with probability
``p_item``; otherwise it is drawn by popularity within its category. So the next category can be learned from titles,
the exact item only from interactions. Items may come again.

**Groups** (``n_groups``). Every group has its own rule, and for no category do two groups agree; with one group per
category, the rules averaged over groups are exactly uniform. Groups are equally large, unless ``last_group`` makes the
last one a minority. With ``group_visible=history`` the last item alone tells nothing about the group: only which
category followed which does. With ``item``, a group prefers its own brands, so that each item of a history hints at the
group. With ``id`` it prefers its own positions: each item hints at the group, but no item's text does.

**Splits** are RecBole's leave-one-out: a user's last item is the test target, the one before it the validation target,
and every earlier item but the first the target of a training row. Two knobs touch training rows only:

- ``mislabelled``: each training target is, with this probability, replaced by an item drawn uniformly from the
  catalogue; what follows goes on from there by the rules. Validation and test targets always follow the rules.
- ``redundant``: this share of users repeats the training interactions of another user, marks included, and then draws
  validation and test targets of its own: judged rows stay independent draws.

**Shift** (``shift``, with groups). Some users of the other groups join the last group for their last three
interactions, which are the last training row, validation and test. So the last group's share of the validation rows,
and of the test rows, exceeds its share of the training rows by ``shift``. Lengths and rules stay as they are.

The same seed gives the same files. Each part of the world draws from a generator of its own, so that turning one knob
leaves the rest as it was: a mislabelled world has the titles, rules, users and lengths of the clean one. Worlds of
several seeds with one ``items_seed`` have the same titles, so that one LLM made of these can be tuned in all of them;
rules, users and draws differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.errors import InputError
from recbole_llm.grounding.rank_metrics import RANK_METRICS, metric_means

NAME = "planted"
TOPK = (1, 5, 10, 20)
BRAND_PREFERENCE = 20.0  # how many times as popular an item of one's own is where groups show in the items
N_DRIFTED = 3  # last interactions of a user who joins another group
N_LEFT = {"valid": 2, "test": 1}  # interactions from a judged target on, itself included
STREAMS = ("items", "rules", "users", "drift", "draws", "noise", "copies")

CATEGORIES = """
    Strategy Racing Puzzle Fantasy Mystery Cooking Pirate Space Garden Music Western Sports Horror Robot Ocean
    Castle Jungle Winter Desert Circus Railway Aviation History Science
""".split()
BRANDS = """
    Aldor Brenik Corvane Delmira Eskaro Fintola Gravix Hestun Ilvara Jorvik Kestrin Lumora Marbek Norvello Ostrava
    Pellion Quandor Rivasco Soltane Tarvik Umbrel Vestara Wendrick Xandell Yarrow Zephira
""".split()
SERIES = """
    Chronicles Legends Masters Odyssey Academy Empire Frontier Horizon Legacy Quest Saga Tales Universe Voyage
    Workshop Zone
""".split()


def _knob(default: Any, meaning: str, low: float = 0, high: float = 0, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class PlantedSettings:
    """Sizes and knobs of a world; every knob that spoils the clean world is off by default. See the module's text.

    The default lengths keep every history within the ten items that models read.

    Raises:
        InputError: a value has the wrong type, is out of range, or does not go with another one.
    """

    n_users: int = _knob(600, "number of users", 2, 1_000_000)
    n_categories: int = _knob(8, "number of categories", 2, len(CATEGORIES))
    n_brands: int = _knob(4, "number of brands", 1, len(BRANDS))
    n_series: int = _knob(3, "number of series", 1, len(SERIES))
    items_per_category: int = _knob(25, "number of items in each category", 1, 10_000)
    min_length: int = _knob(8, "interactions of a user, at least", 4, 10_000)
    max_length: int = _knob(11, "interactions of a user, at most", 4, 10_000)
    p_category: float = _knob(0.8, "probability that the next category follows the rule", 0, 1)
    p_item: float = _knob(0.1, "probability of the exact successor where the rule is followed", 0, 1)
    popularity_skew: float = _knob(0.5, "popularity in a category is place to the power of minus this", 0, 10)
    n_groups: int = _knob(1, "number of user groups with contradicting rules", 1, len(CATEGORIES))
    group_visible: str = _knob("history", "where a group shows", choices=("history", "item", "id"))
    mislabelled: float = _knob(0.0, "share of training targets that are random items", 0, 1)
    redundant: float = _knob(0.0, "share of users whose training rows repeat another user's", 0, 0.99)
    last_group: float = _knob(0.0, "share of users in the last group; 0 makes groups equally large", 0, 0.99)
    shift: float = _knob(0.0, "last group's share of judged rows less that of training rows", 0, 1)
    seed: int = _knob(2020, "seed of everything", 0, 2**63 - 1)
    items_seed: int = _knob(-1, "seed of titles and popularity; -1 is that of everything", -1, 2**63 - 1)

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = _checked(knob.name, getattr(self, knob.name), type(knob.default), knob.metadata)
            object.__setattr__(self, knob.name, value)
        if self.min_length > self.max_length:
            raise InputError(f"min_length {self.min_length} exceeds max_length {self.max_length}; lower one of them")
        if self.n_groups > self.n_categories:
            raise InputError(
                f"n_groups {self.n_groups} exceeds n_categories {self.n_categories}: so many rules cannot all differ; "
                "lower n_groups or raise n_categories"
            )
        if self.group_visible == "item" and self.n_brands < self.n_groups:
            raise InputError(
                f"n_brands {self.n_brands} is less than n_groups {self.n_groups}, but group_visible=item gives a group "
                "brands of its own; raise n_brands"
            )
        if self.last_group and self.n_groups == 1:
            raise InputError(f"last_group {self.last_group:g} is a share of one group; raise n_groups or leave it out")
        if self.group_visible == "id" and self.items_per_category < self.n_groups:
            raise InputError(
                f"items_per_category {self.items_per_category} is less than n_groups {self.n_groups}, but "
                "group_visible=id gives a group items of its own; raise items_per_category"
            )
        if self.shift and self.drift_share > 1:
            raise InputError(
                f"shift {self.shift:g} exceeds {self._largest_shift:.4g}, the most that n_groups {self.n_groups} and "
                f"lengths {self.min_length} to {self.max_length} allow; lower shift or raise one of the others"
            )

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.n_categories * self.items_per_category

    @property
    def group_shares(self) -> np.ndarray:
        """Share of the users in each group, before some join the last one. Returns: float64 [groups]."""
        shares = np.full(self.n_groups, 1 / self.n_groups)
        if self.last_group:
            shares[:] = (1 - self.last_group) / (self.n_groups - 1)
            shares[-1] = self.last_group
        return shares

    @property
    def drift_share(self) -> float:
        """Share of the users of the other groups who join the last group at the end."""
        return self.shift and (self.shift / self._largest_shift if self._largest_shift else np.inf)

    @property
    def _largest_shift(self) -> float:
        """All others join: their share of the judged rows, and of the training rows one in each user's mean number."""
        n_train = (self.min_length + self.max_length) / 2 - 3
        return float(1 - self.group_shares[-1]) * (1 - 1 / n_train)


def _checked(name: str, value: Any, kind: type, metadata: Mapping[str, Any]) -> Any:
    if kind is str:
        if value not in metadata["choices"]:
            raise InputError(f"{name} is {value!r}; give one of {', '.join(metadata['choices'])}")
        return value
    low, high = metadata["low"], metadata["high"]
    accepted = (int, float) if kind is float else int
    if isinstance(value, bool) or not isinstance(value, accepted) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; give {'a number' if kind is float else 'an integer'}, {low} to {high}")
    return kind(value)


@dataclass(frozen=True, eq=False)
class Rules:
    """What is true of a world, whoever is drawn from it. Item ``i`` stands at position ``i % items_per_category``.

    Attributes:
        settings: the knobs.
        brand: int64 [items].
        series: int64 [items].
        number: int64 [items], tells items of one brand, category and series apart.
        next_category: int64 [groups, categories], the rule of each group.
        next_position: int64 [items_per_category], position of an item's exact successor, by its own position.
        popularity: float64 [items_per_category] by position, the same in every category; sums to 1.
    """

    settings: PlantedSettings
    brand: np.ndarray
    series: np.ndarray
    number: np.ndarray
    next_category: np.ndarray
    next_position: np.ndarray
    popularity: np.ndarray

    @property
    def category(self) -> np.ndarray:
        """int64 [items]."""
        return np.arange(self.settings.n_items) // self.settings.items_per_category

    @property
    def titles(self) -> list[str]:
        """Title per item, such as "Aldor Strategy Chronicles 3"."""
        parts = zip(self.brand, self.category, self.series, self.number, strict=True)
        return [f"{BRANDS[brand]} {CATEGORIES[cat]} {SERIES[series]} {number}" for brand, cat, series, number in parts]

    @cached_property
    def choice(self) -> np.ndarray:
        """Probability of an item when its category is given. Returns: float64 [groups, items], 1 per category."""
        knobs = self.settings
        weights = np.tile(self.popularity, (knobs.n_groups, knobs.n_categories))
        if knobs.group_visible != "history":
            position = np.arange(knobs.n_items) % knobs.items_per_category
            shown = self.brand if knobs.group_visible == "item" else position
            own = shown % knobs.n_groups == np.arange(knobs.n_groups)[:, None]
            weights = weights * np.where(own, BRAND_PREFERENCE, 1.0)
        weights = weights.reshape(knobs.n_groups, knobs.n_categories, knobs.items_per_category)
        return (weights / weights.sum(axis=2, keepdims=True)).reshape(knobs.n_groups, knobs.n_items)

    def first_item(self, groups: np.ndarray) -> np.ndarray:
        """Probabilities of a user's first item. Returns: float64 [rows, items]."""
        return self.choice[groups] / self.settings.n_categories

    def next_item(self, groups: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Probabilities of the item after ``last`` by the rules, mislabelling left out.

        Args:
            groups: int64 [rows], whose rule is followed.
            last: int64 [rows], the item before.

        Returns:
            float64 [rows, items].
        """
        knobs, rows = self.settings, np.arange(len(last))
        followed = self.next_category[groups, last // knobs.items_per_category]
        categories = np.full((len(last), knobs.n_categories), (1 - knobs.p_category) / (knobs.n_categories - 1))
        categories[rows, followed] = knobs.p_category * (1 - knobs.p_item)
        probabilities = np.repeat(categories, knobs.items_per_category, axis=1) * self.choice[groups]
        successor = followed * knobs.items_per_category + self.next_position[last % knobs.items_per_category]
        probabilities[rows, successor] += knobs.p_category * knobs.p_item
        return probabilities


@dataclass(frozen=True)
class PlantedRows:
    """The rows of one split in RecBole's order: by user, then by length of the history.

    Attributes:
        user: int64 [rows], index of the user.
        histories: one int64 array of items per row, whole, oldest first.
        target: int64 [rows], item.
        group: int64 [rows], whose rule the target was drawn by, if not mislabelled.
        mislabelled: bool [rows], the target was drawn uniformly.
        redundant: bool [rows], a training row that repeats another user's.
    """

    user: np.ndarray
    histories: list[np.ndarray]
    target: np.ndarray
    group: np.ndarray
    mislabelled: np.ndarray
    redundant: np.ndarray


@dataclass(frozen=True, eq=False)
class World:
    """What was drawn. Users and items are indices; ``u1`` and ``i1`` in the files are the first ones.

    Attributes:
        rules: what it was drawn from.
        sequences: items of each user, oldest first.
        mislabelled: bool like ``sequences``, True where the item was drawn uniformly.
        group: int64 [users].
        final_group: int64 [users], group of the last three interactions; differs from ``group`` where there is a shift.
        copy_of: int64 [users], whose training interactions the user repeats; -1 for nobody's.
    """

    rules: Rules
    sequences: tuple[np.ndarray, ...]
    mislabelled: tuple[np.ndarray, ...]
    group: np.ndarray
    final_group: np.ndarray
    copy_of: np.ndarray

    @property
    def settings(self) -> PlantedSettings:
        """The knobs."""
        return self.rules.settings

    @cached_property
    def recbole_ids(self) -> np.ndarray:
        """RecBole's internal item id per item: by first appearance in the file, from 1. Returns: int64 [items]."""
        order = dict.fromkeys([*np.concatenate(self.sequences).tolist(), *range(self.settings.n_items)])
        ids = np.empty(self.settings.n_items, dtype=np.int64)
        ids[list(order)] = np.arange(1, len(ids) + 1)
        return ids

    def rows(self, split: str) -> PlantedRows:
        """The rows of ``train``, ``valid`` or ``test``."""
        places = [(user, t) for user, items in enumerate(self.sequences) for t in _targets(split, len(items))]
        users, times = np.array(places, dtype=np.int64).reshape(-1, 2).T
        left = np.array([len(self.sequences[user]) for user in users], dtype=np.int64) - times
        return PlantedRows(
            user=users,
            histories=[self.sequences[user][:t] for user, t in places],
            target=np.array([self.sequences[user][t] for user, t in places], dtype=np.int64),
            group=np.where(left <= N_DRIFTED, self.final_group[users], self.group[users]),
            mislabelled=np.array([self.mislabelled[user][t] for user, t in places], dtype=bool),
            redundant=(self.copy_of[users] >= 0) & (split == "train"),
        )


def _targets(split: str, length: int) -> range:
    """Positions of a split's targets in a sequence."""
    start, stop = {"train": (1, length - 2), "valid": (length - 2, length - 1), "test": (length - 1, length)}[split]
    return range(start, stop)


# ---- drawing


def make_world(settings: PlantedSettings | None = None) -> World:
    """Draw a world; the same settings give the same one."""
    knobs = settings or PlantedSettings()
    rules = make_rules(knobs)
    times = np.arange(knobs.max_length)
    users, noise = _generator(knobs, "users"), _generator(knobs, "noise")
    shape = (knobs.n_users, knobs.max_length)

    copy_of = _copies(knobs)
    source = np.where(copy_of < 0, np.arange(knobs.n_users), copy_of)
    group = _groups(knobs, users)
    length = users.integers(knobs.min_length, knobs.max_length + 1, knobs.n_users)[source]
    final_group, group = _drift(knobs, group)[source], group[source]
    in_training = times < (length - 2)[:, None]
    # A copy has the random numbers of its source up to the split, so that it becomes the same sequence.
    draws = _generator(knobs, "draws").random(shape)
    draws = np.where(in_training, draws[source], draws)
    noisy = (noise.random(shape) < knobs.mislabelled)[source] & in_training & (times > 0)
    random_items = noise.integers(knobs.n_items, size=shape)[source]

    items = np.zeros(shape, dtype=np.int64)
    for t in times:
        now = np.where(t >= length - N_DRIFTED, final_group, group)
        chances = rules.next_item(now, items[:, t - 1]) if t else rules.first_item(now)
        items[:, t] = np.where(noisy[:, t], random_items[:, t], _draw(chances, draws[:, t]))
    return World(
        rules=rules,
        sequences=tuple(row[:n] for row, n in zip(items, length, strict=True)),
        mislabelled=tuple(row[:n] for row, n in zip(noisy, length, strict=True)),
        group=group,
        final_group=final_group,
        copy_of=copy_of,
    )


def make_rules(knobs: PlantedSettings) -> Rules:
    """Draw what is true of a world."""
    items, rules = _generator(knobs, "items"), _generator(knobs, "rules")
    size, n_pairs = knobs.items_per_category, knobs.n_brands * knobs.n_series
    # Titles of a category by number, brand and series; then each of its positions gets one of them at random.
    by_number = [
        np.arange(size) // n_pairs * n_pairs + items.permutation(n_pairs)[np.arange(size) % n_pairs]
        for _ in range(knobs.n_categories)
    ]
    number, pairs = np.divmod(np.concatenate([items.permutation(titles) for titles in by_number]), n_pairs)
    # Python's power: NumPy's differs in the last bit from version to version.
    popularity = items.permutation([place**-knobs.popularity_skew for place in range(1, size + 1)])
    return Rules(
        settings=knobs,
        brand=pairs // knobs.n_series,
        series=pairs % knobs.n_series,
        number=number + 1,
        next_category=_contradicting_rules(knobs, rules),
        next_position=rules.permutation(size),
        popularity=popularity / popularity.sum(),
    )


def _contradicting_rules(knobs: PlantedSettings, generator: np.random.Generator) -> np.ndarray:
    """Permutations of the categories, no two of which agree anywhere: steps of different width round one circle.

    The first group walks the circle one by one, the second one backwards; only with as many groups as categories is
    there one that stays where it is. Returns: int64 [groups, categories].
    """
    n = knobs.n_categories
    circle = generator.permutation(n)
    steps = [*sorted(range(1, n), key=lambda step: (min(step, n - step), step)), 0][: knobs.n_groups]
    rules = np.empty((knobs.n_groups, n), dtype=np.int64)
    for group, step in enumerate(steps):
        rules[group, circle] = np.roll(circle, -step)
    return rules


def _groups(knobs: PlantedSettings, generator: np.random.Generator) -> np.ndarray:
    """Group of each user, in the shares that the settings state. Returns: int64 [users]."""
    order = generator.permutation(knobs.n_users)
    if not knobs.last_group:
        return order % knobs.n_groups
    n_others = knobs.n_users - round(knobs.last_group * knobs.n_users)
    return np.where(order < n_others, order % (knobs.n_groups - 1), knobs.n_groups - 1)


def _drift(knobs: PlantedSettings, group: np.ndarray) -> np.ndarray:
    """Group of each user's last interactions: some users of the other groups join the last one."""
    others = _generator(knobs, "drift").permutation(np.flatnonzero(group < knobs.n_groups - 1))
    final_group = group.copy()
    final_group[others[: round(knobs.drift_share * len(others))]] = knobs.n_groups - 1
    return final_group


def _copies(knobs: PlantedSettings) -> np.ndarray:
    """Whom each user repeats, -1 for nobody; who is repeated repeats nobody."""
    generator = _generator(knobs, "copies")
    copies, originals = np.split(generator.permutation(knobs.n_users), [round(knobs.redundant * knobs.n_users)])
    if not len(originals):
        raise InputError(f"redundant {knobs.redundant:g} of {knobs.n_users} users leaves nobody to repeat; lower it")
    copy_of = np.full(knobs.n_users, -1, dtype=np.int64)
    copy_of[copies] = generator.choice(originals, len(copies))
    return copy_of


def _draw(chances: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One item per row of ``chances[rows, items]`` by uniform numbers ``draws[rows]``."""
    steps = chances.cumsum(axis=1)
    drawn = (steps <= draws[:, None] * steps[:, -1:]).sum(axis=1)
    return np.minimum(drawn, chances.shape[1] - 1)  # a draw next to 1 may round to the end


def _generator(knobs: PlantedSettings, stream: str) -> np.random.Generator:
    seed = knobs.items_seed if stream == "items" and knobs.items_seed >= 0 else knobs.seed
    return np.random.default_rng([seed, STREAMS.index(stream)])


# ---- what can be known


def oracle_scores(
    world: World, histories: Sequence[np.ndarray], users: np.ndarray | None = None, split: str = "test"
) -> np.ndarray:
    """True probability of the next item on judged rows: ranking by it is the best that can be done.

    Args:
        world: whose rules are known.
        histories: whole histories, one array of items per row, as in ``world.rows(split)``.
        users: int64 [rows]: their groups are known. If None, groups are inferred from the histories.
        split: ``valid`` or ``test``.

    Returns:
        float64 [rows, items]; each row sums to 1.
    """
    if users is None:
        weights = group_posterior(world, histories, split)
    else:
        weights = np.eye(world.settings.n_groups)[world.final_group[users]]
    return _mixture(world.rules, weights, histories)


def blind_scores(world: World, histories: Sequence[np.ndarray]) -> np.ndarray:
    """As ``oracle_scores``, for who knows all rules and how many users follow each, but not who does.

    With ``group_visible=history`` it is the best that can be read from the last item alone.
    """
    weights = world.settings.group_shares @ _group_prior(world.settings)
    return _mixture(world.rules, np.tile(weights, (len(histories), 1)), histories)


def _mixture(rules: Rules, weights: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
    """Next-item probabilities [rows, items] where each group's rule has ``weights[rows, groups]``."""
    last = np.array([history[-1] for history in histories])
    scores = np.zeros((len(last), rules.settings.n_items))
    for group, weight in enumerate(weights.T):  # one by one: equal probabilities stay equal to the last bit
        scores += weight[:, None] * rules.next_item(np.full(len(last), group), last)
    return scores


def _group_prior(knobs: PlantedSettings) -> np.ndarray:
    """Probability of each final group, given the group before. Returns: float64 [groups, groups]."""
    joined = np.full(knobs.n_groups, knobs.drift_share)
    joined[-1] = 0.0
    prior = np.diag(1 - joined)
    prior[:, -1] += joined
    return prior


def group_posterior(world: World, histories: Sequence[np.ndarray], split: str = "test") -> np.ndarray:
    """Probability, given the history, that the row's target is drawn by each group's rule. Bayes' rule, exact.

    The unknowns are the user's group and whether the user has joined the last group at the end; items drawn before
    tell about the one, items drawn since about the other, and a training target may be mislabelled.

    Returns:
        float64 [rows, groups].

    Raises:
        ValueError: a history cannot happen under any group.
    """
    knobs = world.settings
    with np.errstate(divide="ignore"):
        log_prior = np.log(knobs.group_shares[:, None] * _group_prior(knobs))
    posterior = np.empty((len(histories), knobs.n_groups))
    for row, history in enumerate(histories):
        likelihood = _log_likelihood(world.rules, history, n_judged=2 - N_LEFT[split])
        n_before = len(history) - (N_DRIFTED - N_LEFT[split])
        log = log_prior + likelihood[:n_before].sum(axis=0)[:, None] + likelihood[n_before:].sum(axis=0)
        if np.isneginf(log).all():
            raise ValueError(f"the history {history.tolist()} cannot happen in this world")
        joint = np.exp(log - log.max())
        posterior[row] = joint.sum(axis=0) / joint.sum()
    return posterior


def _log_likelihood(rules: Rules, history: np.ndarray, n_judged: int) -> np.ndarray:
    """Log-probability of each item given the one before, under each group: float64 [items of the history, groups].

    The last ``n_judged`` items were validation targets, which are never mislabelled.
    """
    knobs, last, following = rules.settings, history[:-1], history[1:]
    steps = np.empty((len(history), knobs.n_groups))
    for group in range(knobs.n_groups):
        steps[0, group] = rules.choice[group, history[0]] / knobs.n_categories
        chances = rules.next_item(np.full(len(last), group), last)
        steps[1:, group] = chances[np.arange(len(last)), following]
    noisy = slice(1, len(history) - n_judged)
    steps[noisy] = (1 - knobs.mislabelled) * steps[noisy] + knobs.mislabelled / knobs.n_items
    with np.errstate(divide="ignore"):
        return np.log(steps)


def category_scores(world: World, histories: Sequence[np.ndarray]) -> np.ndarray:
    """As ``oracle_scores``, for who knows rules and popularity but no exact successor, not in inferring groups either.

    It is the best that a method can do which knows of a last item only the category.
    """
    rules = replace(world.rules, settings=replace(world.settings, p_item=0.0))
    return oracle_scores(replace(world, rules=rules), histories)


def popularity_scores(world: World) -> np.ndarray:
    """Counts in the training interactions: what RecBole's Pop ranks by. Returns: float64 [items]."""
    seen = np.concatenate([items[:-2] for items in world.sequences])
    return np.bincount(seen, minlength=world.settings.n_items).astype(np.float64)


@dataclass(frozen=True)
class Judged:
    """What a ranker reaches on the rows of a split.

    Attributes:
        ranks: int64 [rows], 0-based rank of the target.
        metrics: metric name ("ndcg@10") to its value on the targets that were drawn.
        expected: the same in expectation over targets drawn anew by the true probabilities.
    """

    ranks: np.ndarray
    metrics: dict[str, float]
    expected: dict[str, float]


def judge(
    world: World, scores: np.ndarray, topk: Sequence[int] = TOPK, split: str = "test", known_groups: bool = False
) -> Judged:
    """Rank and judge as the command does: higher score first, the lower of RecBole's item ids first among equals.

    Args:
        world: whose rows are judged.
        scores: float [rows, items], or [items] for all rows.
        topk: cut-offs.
        split: ``valid`` or ``test``.
        known_groups: whether the expectation is for the users' true groups, else for groups given the histories.
    """
    rows = world.rows(split)
    by_id = np.argsort(world.recbole_ids)
    scores = np.broadcast_to(scores, (len(rows.target), world.settings.n_items))
    ranked = by_id[np.argsort(-scores[:, by_id], axis=1, kind="stable")]
    ranks = np.empty_like(ranked)
    np.put_along_axis(ranks, ranked, np.arange(ranked.shape[1])[None], axis=1)
    target_ranks = ranks[np.arange(len(ranks)), rows.target]

    truth = oracle_scores(world, rows.histories, rows.user if known_groups else None, split)
    chance_of_rank = np.take_along_axis(truth, ranked, axis=1).mean(axis=0)
    places = np.arange(len(chance_of_rank))
    expected = {
        f"{name}@{k}": float(chance_of_rank @ gain(places, k)) for name, gain in RANK_METRICS.items() for k in topk
    }
    return Judged(target_ranks, metric_means(target_ranks, topk), expected)


def oracle_metrics(world: World, topk: Sequence[int] = TOPK, known_groups: bool = False) -> Judged:
    """What the best ranker reaches, told the users' groups or not."""
    rows = world.rows("test")
    scores = oracle_scores(world, rows.histories, rows.user if known_groups else None)
    return judge(world, scores, topk, known_groups=known_groups)


def group_shares(world: World, split: str) -> np.ndarray:
    """Share of each group's rule in the targets of a split. Returns: float64 [groups]."""
    group = world.rows(split).group
    return np.bincount(group, minlength=world.settings.n_groups) / len(group)


# ---- files


def write_world(world: World, folder: str | Path) -> Path:
    """Write ``<folder>/planted/planted.inter``, ``.item`` and ``.json``; the last says everything, see ``read_world``.

    Returns:
        The data set's folder, ``<folder>/planted``.
    """
    path = Path(folder) / NAME
    path.mkdir(parents=True, exist_ok=True)
    inter = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in enumerate(world.sequences, start=1):
        inter += [f"u{user}\ti{item + 1}\t{time}" for time, item in enumerate(items, start=1)]
    rules = world.rules
    item = ["item_id:token\ttitle:token\tcategory:token\tbrand:token\tseries:token"]
    columns = zip(rules.titles, rules.category, rules.brand, rules.series, strict=True)
    for index, (title, category, brand, series) in enumerate(columns, start=1):
        item.append(f"i{index}\t{title}\t{CATEGORIES[category]}\t{BRANDS[brand]}\t{SERIES[series]}")
    for suffix, lines in (("inter", inter), ("item", item), ("json", _json_lines(world))):
        (path / f"{NAME}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_world(folder: str | Path) -> World:
    """The world that ``write_world`` wrote into a data set's folder, from its JSON alone."""
    file = Path(folder) / f"{NAME}.json"
    if not file.is_file():
        raise InputError(f"there is no {file}; write one with python benchmarks/planted.py --out={Path(folder).parent}")
    content = json.loads(file.read_text(encoding="utf-8"))
    rules = {name: np.array(values) for name, values in content["rules"].items()}
    users = content["users"]
    sequences = tuple(np.array(user["items"]) for user in users)
    mislabelled = tuple(
        np.isin(np.arange(len(items)), user["mislabelled"]) for items, user in zip(sequences, users, strict=True)
    )
    columns = {name: np.array([user[name] for user in users]) for name in ("group", "final_group", "copy_of")}
    return World(Rules(PlantedSettings(**content["settings"]), **rules), sequences, mislabelled, **columns)


def _json_lines(world: World) -> Iterator[str]:
    """One line for the settings, one per rule, one per user. All numbers count from 0."""
    knobs, rules = world.settings, world.rules
    yield '{"settings": ' + json.dumps(asdict(knobs)) + ","
    yield f'"categories": {json.dumps(CATEGORIES[: knobs.n_categories])},'
    yield f'"brands": {json.dumps(BRANDS[: knobs.n_brands])},'
    yield f'"series": {json.dumps(SERIES[: knobs.n_series])},'
    arrays = {knob.name: getattr(rules, knob.name).tolist() for knob in fields(rules) if knob.name != "settings"}
    yield '"rules": {'
    yield ",\n".join(f'"{name}": {json.dumps(values)}' for name, values in arrays.items()) + "},"
    yield '"users": ['
    users = zip(world.sequences, world.mislabelled, world.group, world.final_group, world.copy_of, strict=True)
    yield ",\n".join(
        json.dumps(
            {
                "items": items.tolist(),
                "mislabelled": np.flatnonzero(noisy).tolist(),
                "group": int(group),
                "final_group": int(final_group),
                "copy_of": int(copy_of),
            }
        )
        for items, noisy, group, final_group, copy_of in users
    )
    yield "]}"


# ---- command


def summary(world: World) -> Iterator[str]:
    """Sizes, marks, and what Pop and the oracles reach on the test rows: expected, and on the targets drawn."""
    rows = {split: world.rows(split) for split in ("train", "valid", "test")}
    train, test = rows["train"], rows["test"]
    sizes = " / ".join(f"{len(part.target):,}" for part in rows.values())
    yield f"{len(world.sequences):,} users, {world.settings.n_items:,} items, rows to train / validate / test: {sizes}"
    yield f"training rows: mislabelled {train.mislabelled.mean():.1%}, redundant {train.redundant.mean():.1%}"
    for split in rows if world.settings.n_groups > 1 else ():
        yield f"groups in {split}: " + " ".join(f"{share:.3f}" for share in group_shares(world, split))
    rankers = {
        "Pop": judge(world, popularity_scores(world)),
        "knows the categories": judge(world, category_scores(world, test.histories)),
        "oracle": oracle_metrics(world),
    }
    if world.settings.n_groups > 1:
        rankers["oracle blind to groups"] = judge(world, blind_scores(world, test.histories))
        rankers["oracle told the groups"] = oracle_metrics(world, known_groups=True)
    names = [f"{name}@{k}" for name, k in (("hit", 1), ("hit", 10), ("ndcg", 10))]
    yield f"{'expected (drawn)':24}" + "".join(f"{name:>18}" for name in names)
    for title, judged in rankers.items():
        cells = [f"{judged.expected[name]:.4f} ({judged.metrics[name]:.4f})" for name in names]
        yield f"{title:24}" + "".join(f"{cell:>18}" for cell in cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a world and print its summary. Returns: exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help=f"folder to write {NAME}/ into: the command's data_path")
    for knob in fields(PlantedSettings):
        meaning = f"{knob.metadata['meaning']} ({knob.default})"
        parser.add_argument(f"--{knob.name}", type=type(knob.default), default=knob.default, help=meaning)
    options = vars(parser.parse_args(argv))
    out = options.pop("out")
    try:
        world = make_world(PlantedSettings(**options))
        print(f"written: {write_world(world, out)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary(world)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
