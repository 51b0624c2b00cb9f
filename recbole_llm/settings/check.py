"""Checks of a command, from files alone, before RecBole, torch or the LLM libraries are imported."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recbole_llm.callbacks import check_callbacks
from recbole_llm.curriculum import make_curricula
from recbole_llm.data.columns import check_columns, check_graph, check_item_field, check_presplit, inter_columns
from recbole_llm.data.labels import missing_likes
from recbole_llm.data.lines import Format, read_header
from recbole_llm.errors import InputError
from recbole_llm.llm.folders import check_installed, find_encoder, find_llm
from recbole_llm.llm.settings import OWN_LLM, TINY, check_quantisation
from recbole_llm.prompt.wording import Wording
from recbole_llm.registry import find_choice, suggestion
from recbole_llm.settings.command import Command, check_prefixes, settings_for
from recbole_llm.settings.data_folder import has_data
from recbole_llm.settings.defaults import union_columns
from recbole_llm.settings.launch_checks import check_shards
from recbole_llm.settings.models import check_packages
from recbole_llm.settings.recommender_checks import check_classic, reads_graph
from recbole_llm.settings.resolve import Resolution, resolve
from recbole_llm.settings.stage_checks import check_permuted, check_readable, not_writable
from recbole_llm.settings.task_checks import check_one_history, check_same_candidates, check_same_rows, mixed_tasks
from recbole_llm.settings.training import is_tuned

if TYPE_CHECKING:
    from recbole_llm.coreset import Selector


def check_command(command: Command) -> list[Resolution]:
    """The settings of every model of a command, checked alone, side by side and against the headers of the data files.

    Raises:
        InputError: the first mistake.
    """
    if not command.models:
        raise InputError(
            "model",
            "no model is given; add --model=<name>, such as --model=BIGRec or --model=Pop,SASRec,BIGRec",
            kind="missing",
        )
    if not command.dataset:
        raise InputError(
            "dataset", "no data set is given; add --dataset=<name>, such as --dataset=ml-100k", kind="missing"
        )
    check_prefixes(command.per_model, command.models)
    if " " not in command.baseline:  # the label of a run that learns from other rows (SASRec (1024 rows)) is seen later
        check_baseline(command.baseline, command.models)
    resolved = [resolve(model, command.dataset, settings_for(model, command)) for model in command.models]
    check_resolved(resolved)
    return resolved


def check_baseline(wanted: str, labels: Sequence[str]) -> None:
    """Refuse a baseline that is no model of the table.

    Args:
        wanted: a name in the table, or nothing.
        labels: names of the table's models.

    Raises:
        InputError: with the nearest names.
    """
    if wanted and wanted not in labels:
        hint = suggestion(wanted, labels, f"; the table has {', '.join(labels)}")
        raise InputError("baseline", f"no model of the table is named '{wanted}'{hint}", kind="unknown")


def check_resolved(resolved: Sequence[Resolution]) -> None:
    """Refuse runs of one table that do not go together, or whose files, folders or packages are not as they need them.

    Args:
        resolved: the settings of each, in the order of the table.

    Raises:
        InputError: the first mistake.
    """
    for one in resolved:
        check_packages(one.model)
        check_callbacks(one)
        check_shards(one)
    by_task = {one.task: one.model for one in resolved}
    if len(by_task) > 1:
        raise mixed_tasks(by_task["click"], by_task["next-item"])
    check_same_candidates(resolved)
    check_same_rows(resolved)
    check_one_history([one for one in resolved if one.facts.type == "SEQUENTIAL"])
    for one in resolved:
        if has_data(Path(one["data_path"]), one.dataset):  # else RecBole downloads it
            check_presplit(one)
            _check_load_col(one)
        if one.facts.is_llm:
            Wording.of_domain(one["domain"])
            check_permuted(one)
            _check_files(one)
        else:
            check_classic(one.model, one.facts, one)
        _check_writable(Path(one["checkpoint_dir"]))
    columns = union_columns([one["load_col"] for one in resolved])
    for one in resolved:
        if has_data(Path(one["data_path"]), one.dataset):
            _check_data(dataclasses.replace(one, final={**one.final, "load_col": columns}))


def _check_data(resolved: Resolution) -> None:
    """Refuse data files without the columns that the model reads."""
    check_columns(resolved)
    if reads_graph(resolved.model, resolved.facts):
        check_graph(resolved.model, resolved)
    _check_item_fields(resolved)
    _check_user_fields(resolved)
    if resolved.facts.is_llm and resolved.task == "click" and resolved["benchmark_filename"] is not None:
        likes = resolved["LABEL_FIELD"] + resolved["LIST_SUFFIX"]
        if any(likes not in columns for _, columns in inter_columns(resolved)):
            raise missing_likes(likes)


def _check_writable(folder: Path) -> None:
    """Refuse a ``checkpoint_dir`` that cannot be made or written to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise not_writable(folder, os.strerror(errno.ENOTDIR if there != folder.absolute() else errno.EEXIST))
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(folder, os.strerror(errno.EACCES))


def _check_files(resolved: Resolution) -> None:
    """Refuse files and folders of an LLM's run that are not there; a finished run is loaded without most of them."""
    if resolved["llm_path"] != TINY:
        find_llm(resolved["llm_path"])
        check_quantisation(resolved["quant"], on_cpu=not resolved["use_gpu"])
    if not is_tuned(resolved):
        return
    if resolved["sd_file"] is not None and make_curricula(resolved):
        check_readable("sd_file", Path(resolved["sd_file"]))
    if resolved["coreset_file"] is not None:
        check_readable("coreset_file", Path(resolved["coreset_file"]))
        return
    selector = cast("type[Selector] | None", find_choice("coreset", resolved["coreset"]))
    if selector is not None and resolved["coreset_encoder"] != OWN_LLM:
        if any(need.name in ("embeddings", "valid_embeddings") for need in selector.needs):
            check_installed(find_encoder(resolved["coreset_encoder"]))


def _files(resolved: Resolution, suffix: str) -> Iterator[Path]:
    """The files of a suffix, whole or split."""
    folder, name = Path(resolved["data_path"]), resolved.dataset
    parts = resolved["benchmark_filename"] if suffix == "inter" else None
    names = [name] if parts is None else [f"{name}.{part}" for part in parts]
    yield from (file for file in (folder / f"{stem}.{suffix}" for stem in names) if file.is_file())


def _check_load_col(resolved: Resolution) -> None:
    """Refuse columns to load, or to leave out, that the files do not have; RecBole passes over them silently."""
    for key in ("load_col", "unload_col"):
        for suffix, wanted in (resolved.user.get(key) or {}).items():
            for file in _files(resolved, suffix):
                columns = read_header(file, Format.from_config(resolved))
                for field in [] if wanted == "*" else wanted:
                    if field not in columns:
                        message = f"{file.name} has no column '{field}', it has {', '.join(columns)}"
                        raise InputError(key, message, kind="data")


def _check_item_fields(resolved: Resolution) -> None:
    """Refuse item fields for titles and texts that the .item file does not have, or that are no text."""
    asked: list[tuple[str, str]] = []
    if resolved.facts.is_llm or resolved["candidates"]:
        asked += [(key, resolved[key]) for key in ("title_field", "title_with") if resolved[key]]
    if resolved.facts.is_llm:
        asked += [("item_text_fields", field) for field in resolved["item_text_fields"] or ()]
    ranks = resolved.task != "click" and not resolved["candidates"]
    if not asked and not (ranks and resolved["category_field"]):
        return
    files = list(_files(resolved, "item"))
    columns = read_header(files[0], Format.from_config(resolved)) if files else {}
    loaded = (resolved["load_col"] or {"item": "*"}).get("item", ())
    for key, field in asked:
        check_item_field(key, field, resolved.dataset, columns, loaded)
    if ranks and resolved["category_field"]:  # a run that does not load it goes on without it
        check_item_field("category_field", resolved["category_field"], resolved.dataset, columns, "*")


def _check_user_fields(resolved: Resolution) -> None:
    """Refuse user fields for texts that the .user file does not have, or that are no text."""
    if resolved.facts.names_codes != "twin" or not resolved["user_text_fields"]:
        return
    files = list(_files(resolved, "user"))
    columns = read_header(files[0], Format.from_config(resolved)) if files else {}
    loaded = (resolved["load_col"] or {"user": "*"}).get("user", ())
    for field in resolved["user_text_fields"]:
        check_item_field("user_text_fields", field, resolved.dataset, columns, loaded, of="user")
