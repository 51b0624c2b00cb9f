"""RecBole's own loaders of the rows that are trained on and evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.data import create_samplers
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import get_dataloader
from recbole.sampler import KGSampler, RepeatableSampler, Sampler
from recbole.utils import ModelType

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.rows import AsSequential, Rows, row_pairs
from recbole_llm.data.sampled_modes import is_sampled
from recbole_llm.declare import MutableSettings
from recbole_llm.errors import InputError


def train_loader(config: MutableSettings, rows: Rows) -> Any:
    """RecBole's own training loader for the model, with negatives drawn as RecBole draws them by default."""
    negatives: Mapping[str, Any] = config["train_neg_sample_args"]
    loader_class = get_dataloader(config, "train")
    sampler = None
    if negatives["distribution"] != "none":
        # `repeatable` is about evaluation; a general model never learns against its user's own items. Popular is what
        # the training rows have: RecBole counts validation and test targets, too.
        how = (negatives["distribution"], negatives["alpha"])
        is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        if negatives["distribution"] == "popularity":
            _check_drawable(rows, 1 if is_sequential else _most_items(rows))
        if is_sequential:
            sampler = RepeatableSampler(["train"], rows.train, *how).set_phase("train")
        else:
            sampler = Sampler(["train"], [rows.train], *how).set_phase("train")
        if negatives["distribution"] == "popularity":
            _pin_last(sampler)
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        kg_sampler = KGSampler(rows.train, negatives["distribution"], negatives["alpha"])
        return loader_class(config, rows.train, sampler, kg_sampler, shuffle=True)
    return loader_class(config, rows.train, sampler, shuffle=config["shuffle"])


def _check_drawable(rows: Rows, n_excluded: int) -> None:
    """Refuse popular negatives of training rows that leave somebody none, for which RecBole would draw for ever.

    Args:
        rows: the rows.
        n_excluded: most different items that are no negatives of one row.
    """
    n_items = len(np.unique(row_pairs(rows.train)[:, 1]))
    if n_items <= n_excluded:
        raise InputError(
            "train_neg_sample_args",
            f"popularity draws from the {n_items} items of {len(rows.train)} training rows, which leaves a row none; "
            "set distribution: uniform, or take more rows",
            kind="data",
        )


def _most_items(rows: Rows) -> int:
    """Different items of the user who had most in training."""
    return int(np.bincount(np.unique(row_pairs(rows.train), axis=0)[:, 0]).max(initial=0))


def eval_loader(config: MutableSettings, rows: Rows, phase: str) -> Any:
    """The loader of the evaluated rows of ``phase`` ("valid" or "test"); None if there are none.

    Where items are sampled (``uni<n>``, ``pop<n>``), a row's sample depends on ``sample_seed``, its user and its target
    alone: it is the same for every model, seed and epoch, and whichever other rows are evaluated.

    Where items are not repeatable, those that a row's user had before its target, all of them and not only those that a
    model is shown, are neither ranked nor sampled.

    Raises:
        InputError: items are sampled, and a user has several rows or had all of them; or they are not repeatable, and
            histories come from files that may have cut them.
    """
    part = getattr(rows, phase)
    if not len(part):
        return None
    mode = config["eval_args"]["mode"][phase]
    sampled = is_sampled(mode)
    only_new = not config["repeatable"] and not config["candidates"] and (sampled or mode == "full")
    if only_new and config["benchmark_filename"] is not None:
        message = "False needs all interactions of a user; rows of benchmark_filename tell of their histories only"
        raise InputError("repeatable", message, kind="conflict")
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    view = config if sequential else AsSequential(config)  # a transform writes into its loader's config
    if sampled and len(np.unique(row_pairs(part)[:, 0])) < len(part):
        # RecBole's loader would rank all targets of a user in one list, by scores for different histories.
        raise InputError(
            "eval_args: mode: sampled candidates need one row per user; set split {LS: valid_and_test}", kind="conflict"
        )
    samplers = dict(zip(("train", "valid", "test"), create_samplers(view, rows.valid, [part] * 3), strict=True))
    if sampled:
        if mode.startswith("pop"):
            _count_before_split(samplers[phase], rows.whole.item_counts)
        if only_new:
            _without_earlier_items(samplers[phase], rows, part)
        samplers[phase] = _drawing_by_row(samplers[phase], config["sample_seed"])
    elif only_new:
        return _NewItemsLoader(view, rows, part)
    return get_dataloader(view, phase)(view, part, samplers[phase], shuffle=False)


class _NewItemsLoader(FullSortEvalDataLoader):  # type: ignore[misc]
    """RecBole's loader of rows that are ranked among all items but those that their users had before."""

    def __init__(self, config: Any, rows: Rows, part: SequentialDataset) -> None:
        self._earlier = [torch.from_numpy(items) for items in rows.earlier_items(part)]
        super().__init__(config, part, sampler=None)

    def collate_fn(self, index: Any) -> tuple[Any, ...]:
        """RecBole's batch, with the row and item of each score that its trainer shall leave out."""
        batch, _, rows, targets = super().collate_fn(index)
        earlier = [self._earlier[place] for place in np.asarray(index)]
        counts = torch.tensor([len(items) for items in earlier])
        return batch, (torch.arange(len(earlier)).repeat_interleave(counts), torch.cat(earlier)), rows, targets


def _without_earlier_items(sampler: Any, rows: Rows, part: SequentialDataset) -> None:
    """Keep a RecBole sampler from drawing what a row's user had before, each user having one row.

    Args:
        sampler: sampler of ``uni<n>`` or ``pop<n>``, which draws none of ``used_ids[user]``: the target so far.
        rows: all rows.
        part: the rows that are evaluated.

    Raises:
        InputError: nothing would be left to draw, and RecBole would draw for ever.
    """
    drawable = set(
        np.flatnonzero(rows.whole.item_counts)
        if sampler.distribution == "popularity"
        else range(1, rows.whole.item_num)
    )
    for (user, _), earlier in zip(row_pairs(part), rows.earlier_items(part), strict=True):
        sampler.used_ids[user] |= {*earlier.tolist()}
        if drawable <= sampler.used_ids[user]:
            name = rows.whole.field2id_token[rows.whole.uid_field][user]
            message = f"False leaves no item to sample for user {name}, who had all of them; set it True, or mode: full"
            raise InputError("repeatable", message, kind="conflict")


def _count_before_split(sampler: Any, counts: np.ndarray) -> None:
    """Popularity of a RecBole sampler by the interactions before the split; RecBole counts the evaluated ones.

    Args:
        sampler: sampler of ``pop<n>``.
        counts: int64 [items], interactions of each item before the split.
    """
    sampler._get_candidates_list = np.repeat(np.arange(len(counts)), counts).tolist
    sampler._build_alias_table()
    _pin_last(sampler)


def _pin_last(sampler: Any) -> None:
    """Keep a RecBole sampler by popularity from drawing the item -1."""
    for item, other in sampler.alias.items():
        if other == -1:  # nobody's remainder: rounding may leave it a trifle below 1, and RecBole then draws item -1
            sampler.prob[item] = 1.0


def _drawing_by_row(sampler: Any, seed: int) -> Any:
    """A RecBole sampler that draws for each row by a generator of the row's own."""
    draw = sampler.sample_by_user_ids

    def draw_by_row(user_ids: np.ndarray, item_ids: np.ndarray, num: int) -> torch.Tensor:
        drawn = []
        for index in range(len(user_ids)):
            row = slice(index, index + 1)
            with _numpy_seeded(seed, int(user_ids[index]), int(item_ids[index])):
                drawn.append(draw(user_ids[row], item_ids[row], num))
        return torch.stack(drawn, dim=1).flatten()  # RecBole's order: first of each row, second of each row, ...

    sampler.sample_by_user_ids = draw_by_row
    return sampler


@contextmanager
def _numpy_seeded(*seed: int) -> Iterator[None]:
    """A context in which NumPy's global generator, which RecBole's samplers draw from, has a seed of its own."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
