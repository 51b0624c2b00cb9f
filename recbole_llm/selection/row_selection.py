"""Which training rows an LLM is tuned on: the stage between the rows and the first fine-tuning."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_llm.coreset import Selection, Selector, resolve_budget
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_arrays, hash_json
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.registry import find_choice
from recbole_llm.report import map_points, peak_mib
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.row_inputs import RowInputs, check_needs
from recbole_llm.stages import write_json

STAGE, FILE, SUMMARY, MAP = "coreset", "coreset.csv", "coreset.json", "map.npz"
MAP_ROWS = 4000  # of each side, at most, unless more are selected
log = logging.getLogger(__name__)


def select_rows(model: LLMRecommender, config: Any, rows: Any, valid_rows: Any) -> tuple[Any, Path | None]:
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
    if config["coreset_file"] is not None:
        chosen = read_selection(Path(config["coreset_file"]), rows)
        log.info("coreset_file: %d of %d rows, %s", len(chosen), len(rows), config["coreset_file"])
        return _subset(rows, chosen), None
    choice = find_choice("coreset", config["coreset"])
    if choice is None:
        if "coreset_size" in config.external_config_dict:
            log.warning("coreset_size is set, but coreset is none: %s learns from all rows.", config["model"])
        return rows, None
    selector = choice.from_settings(config.final_config_dict)
    check_needs(selector, config, valid_rows)
    examples = model.token_pairs(rows.inter_feat)
    pool = Pool(rows, _places(model, config, rows, examples), valid_rows)
    budget = _amount("coreset_size", config["coreset_size"], len(pool))
    needs = [need.name for need in selector.needs if need.name not in selector.unused()]
    inputs = RowInputs(model, config, pool, [examples[place] for place in pool.places], needs)
    values = {name: value for name in needs if (value := inputs.get(name)) is not None}
    facts = {
        "selector": selector.facts(),
        "budget": budget,
        "unit": config["coreset_unit"],
        **pool.digests,
        "inputs": {
            name: hash_arrays(value) if isinstance(value, np.ndarray) else hash_json(value)
            for name, value in values.items()
        },
        "seed": config["seed"],
    }

    def compute(folder: Path) -> None:
        started = time.perf_counter()
        selection = selector.select(pool.ids, budget, seed=model.stage_seed("coreset"), **values)
        seconds = {**inputs.seconds, "selection": time.perf_counter() - started}
        _write_selection(folder / FILE, pool, selection, _numbers_per_row(selector, values))
        if "trace" in selection.outcome:
            _write_map(folder / MAP, pool.ids, selection, values, config["seed"])
        write_json(folder / SUMMARY, _summary(facts, selection, inputs, seconds))

    folder = model.stages.get(STAGE, facts, compute)
    _log_cost(folder, found=STAGE in model.stages.reused)
    return _subset(rows, read_selection(folder / FILE, rows)), folder


def _places(model: LLMRecommender, config: Any, rows: Any, examples: Sequence[TokenPair | None]) -> np.ndarray:
    """Places of the rows that can be chosen, by ascending id.

    These are the rows that can be read; of each user the last one, where users are counted; a draw from them, where
    ``coreset_pool`` says so.
    """
    feat = rows.inter_feat
    places = np.flatnonzero([example is not None for example in examples])
    if not len(places):
        raise InputError(f"no training row has titles in field '{config['title_field']}'")
    ids = feat[SAMPLE_ID].numpy()
    places = places[np.argsort(ids[places])]
    if config["coreset_unit"] == "user":
        users, lengths = (feat[name].numpy()[places] for name in (rows.uid_field, rows.item_list_length_field))
        order = np.lexsort((ids[places], lengths, users))
        last = np.append(users[order][1:] != users[order][:-1], True)
        places = places[np.sort(order[last])]
    if config["coreset_pool"] is not None:
        size = min(_amount("coreset_pool", config["coreset_pool"], len(places)), len(places))
        drawn = np.random.default_rng(model.stage_seed("coreset-pool")).choice(len(places), size, replace=False)
        places = places[np.sort(drawn)]
    log.info("coreset %s: chosen from %d of %d rows", config["coreset"], len(places), len(rows))
    return places


def _amount(key: str, value: int | float, n_rows: int) -> int:
    """Rows that a count or a share means, at least one."""
    amount = resolve_budget(n_rows, **({"budget": value} if isinstance(value, int) else {"ratio": value}))
    if not amount:
        raise InputError(f"{key}: {value} of {n_rows} rows is less than one; raise it")
    return amount


def _numbers_per_row(selector: Selector, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs that are one number per row."""
    names = [need.name for need in selector.needs if need.per_row and need.name in values]
    return {name: values[name] for name in names if isinstance(values[name], np.ndarray) and values[name].ndim == 1}


def _summary(
    facts: Mapping[str, Any], selection: Selection, inputs: RowInputs, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What is told of a choice, from what it depends on and how it went."""
    n_pool = len(selection.scores)
    return {
        **facts["selector"],
        "unit": facts["unit"],
        "seed": facts["seed"],
        "rows": len(inputs.pool.data),
        "pool": n_pool,
        "selected": len(selection.ids),
        "inputs": facts["inputs"],
        "seconds": seconds,
        "seconds_per_1000_rows": {name: 1000 * value / n_pool for name, value in seconds.items()},
        "peak_mib": max(inputs.peak_mib, peak_mib()),
        **({"outcome": selection.outcome} if selection.outcome else {}),
        **inputs.facts,
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
    """What the choice took, and, where it was found, what its search told when it ran."""
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


# ---- the file


def row_hashes(rows: Any) -> list[str]:
    """What ties a file of choices to its rows: 16 hex digits over user, history and target of each."""
    feat = rows.inter_feat
    items = feat[rows.iid_field + rows.config["LIST_SUFFIX"]].tolist()
    columns = (feat[name].tolist() for name in (rows.uid_field, rows.item_list_length_field, rows.iid_field))
    return [
        hash_json([user, own[:length], target])[:16] for own, user, length, target in zip(items, *columns, strict=True)
    ]


def _write_selection(file: Path, pool: Pool, selection: Selection, inputs: Mapping[str, np.ndarray]) -> None:
    """One line per row that could be chosen: id, hash, whether it was, score, and what the score is made of."""
    hashes, selected = row_hashes(pool.data), np.isin(pool.ids, selection.ids).astype(int)
    columns = [selection.scores.tolist(), *(value.tolist() for value in inputs.values())]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([SAMPLE_ID, "row", "selected", "score", *inputs])
        for place, sample_id, chosen, *values in zip(
            pool.places.tolist(), pool.ids.tolist(), selected.tolist(), *columns, strict=True
        ):
            writer.writerow([sample_id, hashes[place], chosen, *map(repr, values)])


def read_selection(file: Path, rows: Any) -> np.ndarray:
    """Places of the rows that a file says are selected, ascending.

    Raises:
        InputError: the file cannot be read, selects nothing, a row twice, or rows that are not among these.
    """
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            lines = [(int(line[SAMPLE_ID]), line["row"], int(line["selected"])) for line in csv.DictReader(stream)]
    except OSError as error:
        raise InputError(f"coreset_file: {file} cannot be read ({error.strerror}); set the right one") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"coreset_file: {file} holds no selection; give the coreset.csv of a run") from error
    places = {sample_id: place for place, sample_id in enumerate(rows.inter_feat[SAMPLE_ID].tolist())}
    hashes, chosen = row_hashes(rows), []
    for sample_id, row, selected in lines:
        if not selected:
            continue
        if sample_id not in places or hashes[places[sample_id]] != row:
            raise InputError(
                f"coreset_file: {file} selects row {sample_id}, which is no row of this run; use the data, the split "
                "and the train_sample_size that it was made with"
            )
        chosen.append(places[sample_id])
    if not chosen:
        raise InputError(f"coreset_file: {file} selects no row; give the coreset.csv of a run")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"coreset_file: {file} selects {len(chosen) - len(set(chosen))} rows twice; give each once")
    return np.sort(np.array(chosen, dtype=np.int64))


def _subset(rows: Any, places: np.ndarray) -> Any:
    return rows.copy(rows.inter_feat[torch.from_numpy(places)])
