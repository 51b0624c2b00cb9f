"""The stage ``coreset``: the training rows that an LLM is tuned on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from recbole_llm.coreset import Selection, Selector
from recbole_llm.coreset.checks import checked_size
from recbole_llm.coreset.settings import CoresetSettings
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.disk import write_json
from recbole_llm.hashing import hash_arrays, hash_json
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.registry import find_choice
from recbole_llm.report import map_points, peak_mib
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.row_inputs import RowInputs
from recbole_llm.selection.selection_file import read_selection, write_selection
from recbole_llm.selection.training_rows import TrainingRows, check_any, read_examples, subset
from recbole_llm.selection.trunk_rows import cut_to_trunks, overlap_items
from recbole_llm.settings.config import Config
from recbole_llm.settings.coreset_checks import check_needs
from recbole_llm.stages import Stage, stage_seed
from recbole_llm.timeline import timeline

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

STAGE, FILE, SUMMARY, MAP = "coreset", "coreset.csv", "coreset.json", "map.npz"
MAP_ROWS = 4000  # of each side, at most, unless more are selected
log = logging.getLogger(__name__)


def select_rows(
    model: LLMRecommender, config: Config, rows: Dataset, valid_rows: Dataset | None
) -> tuple[TrainingRows, Path | None]:
    """The rows that the config's coreset chooses.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        rows: the training rows, a RecBole data set.
        valid_rows: the validation rows, for selectors that look at them; or None.

    Returns:
        The chosen rows in their order, and the stage's folder (None where rows come from a file, or all are taken).

    Raises:
        InputError: a coreset of a size, unit or file that does not fit the rows, or that this model cannot give.
    """
    settings = CoresetSettings.from_settings(config.final_config_dict)
    if settings.coreset_file is not None:
        chosen = read_selection(Path(settings.coreset_file), rows)
        log.info("coreset_file: %d of %d rows, %s", len(chosen), len(rows), settings.coreset_file)
        rows = subset(rows, chosen)
        return _all_of(model, rows), None
    choice = cast(type[Selector] | None, find_choice("coreset", settings.coreset))
    if choice is None:
        return _all_of(model, rows), None
    selector = choice.from_settings(config.final_config_dict)
    check_needs(selector, config["model"], config.task, config, valid_rows is not None)
    examples = read_examples(model, rows)
    check_any([example for example in examples if example is not None], model)
    pool = Pool(rows, _choosable(config, rows, examples), valid_rows)
    timeline().begin(STAGE)  # what the selector needs to know included
    stage = CoresetStage(selector, model, config, pool, examples)
    chosen = model.stages.run(stage)
    folder = model.stages.folder(stage)
    _log_cost(folder, found=STAGE in model.stages.reused)
    rows = subset(rows, chosen)
    if config["train_unit"] == "user":
        return _all_of(model, rows), folder
    return TrainingRows.of(model, rows, [examples[index] for index in chosen]), folder


def chooses_rows(config: Config) -> bool:
    """Whether a selector chooses rows, and neither all are taken nor those of a file."""
    settings = CoresetSettings.from_settings(config.final_config_dict)
    return settings.coreset_file is None and find_choice("coreset", settings.coreset) is not None


def _all_of(model: LLMRecommender, rows: Any) -> TrainingRows:
    """Rows as the model is trained on them: with the histories that they see in trunks, where it is."""
    config = model.config
    if config["train_unit"] == "user":
        rows = cut_to_trunks(model, rows, overlap_items(config["trunk_overlap"], config["MAX_ITEM_LIST_LENGTH"]))
    return TrainingRows.of(model, rows, read_examples(model, rows))


def _choosable(config: Config, rows: Dataset, examples: Sequence[TokenPair | None]) -> np.ndarray:
    """Indices of the rows that can be chosen, by ascending id.

    These are the rows that can be read; of each user the last one, where users are counted; a draw from them, where
    ``coreset_pool`` says so.
    """
    feat, settings = rows.inter_feat, CoresetSettings.from_settings(config.final_config_dict)
    indices = np.flatnonzero([example is not None for example in examples])
    ids = feat[SAMPLE_ID].numpy()
    indices = indices[np.argsort(ids[indices])]
    if settings.coreset_unit == "user":
        users, lengths = (feat[name].numpy()[indices] for name in (rows.uid_field, rows.item_list_length_field))
        order = np.lexsort((ids[indices], lengths, users))
        last = np.append(users[order][1:] != users[order][:-1], True)
        indices = indices[np.sort(order[last])]
    if settings.coreset_pool is not None:
        size = min(checked_size("coreset_pool", settings.coreset_pool, len(indices)), len(indices))
        generator = np.random.default_rng(stage_seed(config["seed"], "coreset-pool"))
        indices = indices[np.sort(generator.choice(len(indices), size, replace=False))]
    log.info("coreset %s: chosen from %d of %d rows", settings.coreset, len(indices), len(rows))
    return indices


class CoresetStage(Stage[np.ndarray]):
    """A selector's choice among some rows: indices among all training rows, int64, ascending.

    Args:
        selector: chooses.
        model: the recommender, untuned.
        config: the resolved config.
        pool: the rows to choose from.
        examples: prompt and response of every training row, None where it cannot be read.
    """

    name = STAGE

    def __init__(
        self,
        selector: Selector,
        model: LLMRecommender,
        config: Config,
        pool: Pool,
        examples: Sequence[TokenPair | None],
    ) -> None:
        self.config, self.pool = config, pool
        self.settings = CoresetSettings.from_settings(config.final_config_dict)
        self.budget = checked_size("coreset_size", self.settings.coreset_size, len(pool))
        self.selector = selector.uncut() if self.budget >= len(pool) else selector
        if self.budget >= len(pool):
            log.warning(
                "coreset %s: all %d rows are chosen; lower coreset_size, or raise train_sample_size or coreset_pool",
                self.settings.coreset,
                len(pool),
            )
        needs = [need.name for need in selector.needs if need.name not in selector.unused()]
        own = [example for index in pool.indices if (example := examples[index]) is not None]
        self.inputs = RowInputs(model, config, pool, own, needs)
        self.values = {name: value for name in needs if (value := self.inputs.get(name)) is not None}

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {
            "selector": self.selector.facts(),
            "budget": self.budget,
            "unit": self.settings.coreset_unit,
            **self.pool.digests,
            "inputs": {
                name: hash_arrays(value) if isinstance(value, np.ndarray) else hash_json(value)
                for name, value in self.values.items()
            },
            "seed": self.config["seed"],
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        started = time.perf_counter()
        seed = stage_seed(self.config["seed"], "coreset")
        selection = self.selector.select(self.pool.ids, self.budget, seed=seed, **self.values)
        seconds = {**self.inputs.seconds, "selection": time.perf_counter() - started}
        write_selection(folder / FILE, self.pool, selection, self._numbers_per_row())
        if "trace" in selection.outcome:
            _write_map(folder / MAP, self.pool.ids, selection, self.values, self.config["seed"])
        write_json(folder / SUMMARY, self._summary(selection, seconds))

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`."""
        return read_selection(folder / FILE, self.pool.data)

    def _numbers_per_row(self) -> dict[str, np.ndarray]:
        """Inputs that are one number per row."""
        names = [need.name for need in self.selector.needs if need.per_row and need.name in self.values]
        arrays = {name: value for name in names if isinstance(value := self.values[name], np.ndarray)}
        return {name: value for name, value in arrays.items() if value.ndim == 1}

    def _summary(self, selection: Selection, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The record of a selection (``coreset.json``): what it depends on and how it went."""
        facts, n_pool = self.facts(), len(selection.scores)
        return {
            **facts["selector"],
            "unit": facts["unit"],
            "seed": facts["seed"],
            "rows": len(self.pool.data),
            "pool": n_pool,
            "selected": len(selection.ids),
            "inputs": facts["inputs"],
            "seconds": seconds,
            "seconds_per_1000_rows": {name: 1000 * value / n_pool for name, value in seconds.items()},
            "peak_mib": max(self.inputs.peak_mib, peak_mib()),
            **({"outcome": selection.outcome} if selection.outcome else {}),
            **self.inputs.facts,
        }


def _write_map(file: Path, ids: np.ndarray, selection: Selection, values: Mapping[str, Any], seed: int) -> None:
    """What a picture of a search for a selection among vectors shows: all selected rows, and a draw from the others."""
    vectors = values["embeddings"] if "embeddings" in values else values["vectors"]
    targets = values.get("valid_embeddings", vectors[:0])
    selected, rng = np.isin(ids, selection.ids), np.random.default_rng(seed)
    others = rng.permutation(np.flatnonzero(~selected))[: max(0, MAP_ROWS - len(selection.ids))]
    shown = np.sort(np.concatenate([np.flatnonzero(selected), others]))
    drawn = np.sort(rng.permutation(len(targets))[:MAP_ROWS])
    points, valid_points = map_points(vectors[shown], targets[drawn])
    np.savez(file, points=points, selected=selected[shown], valid_points=valid_points)


def _log_cost(folder: Path, found: bool) -> None:
    """Log what the choice took, and, where it was found, what its search told when it ran."""
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    parts = zip(summary["seconds"].items(), summary["seconds_per_1000_rows"].values(), strict=True)
    log.info(
        "coreset %s: %d rows selected in %.1f s, peak %.0f MiB (%s), %s",
        summary["coreset"],
        summary["selected"],
        sum(summary["seconds"].values()),
        summary["peak_mib"],
        ", ".join(f"{name} {seconds:.1f} s, {per_row:.3g} s per 1,000 rows" for (name, seconds), per_row in parts),
        folder / FILE,
    )
    if found and "trace" in (outcome := summary.get("outcome", {})):
        log.info(
            "coreset %s: %s search; objective %.6f at the start, %.6f after %d exchanges and %d transports; best "
            "estimated gain outside the pool: %.2g",
            *(summary["coreset"], outcome["method"], outcome["trace"][0], outcome["objective"]),
            *(len(outcome["trace"]) - 1, outcome["n_solves"], outcome["missed_gain"]),
        )
