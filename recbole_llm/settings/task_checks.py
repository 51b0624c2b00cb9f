"""Checks of the task against the evaluation: metrics, modes, candidates."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from recbole_llm.data.sampled_modes import is_sampled
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.registry import OMITTED, suggestion
from recbole_llm.settings.metric_names import CATEGORIES, LIST_METRICS
from recbole_llm.settings.models import CLICK_IF_ASKED
from recbole_llm.settings.source import classes_in

NOT_FOR_CLICKS = ("curriculum", "objective", "preference", "grounding", "reweight")  # they work on generated text
DRAWS_CANDIDATES = ("candidates", "sample_seed", "title_field", "title_with")  # these settings decide which are drawn
EVALUATED_ROWS = ("eval_args", "valid_sample_size", "test_sample_size")
RANKING, VALUE = "RANKING", "VALUE"
LOSS = "loss"  # the valid_metric of LLM models that is no metric: loss per token of the validation rows' answers
log = logging.getLogger(__name__)


@cache
def metric_kinds() -> Mapping[str, str]:
    """Metrics by name, RecBole's and ours: ``RANKING``, of lists of items, or ``VALUE``, of scores of single rows."""
    found = {metric.name: metric.attribute("metric_type") for metric in classes_in("recbole.evaluator.metrics")}
    ours = dict.fromkeys(LIST_METRICS, RANKING)
    return {name: kind for name, kind in {**found, **ours}.items() if kind is not None}


def as_list(value: object) -> list[Any]:
    """A value as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def modes_of(eval_args: Mapping[str, Any]) -> list[Any]:
    """The evaluation modes, of validation and test where they differ."""
    mode = eval_args["mode"]
    return list(mode.values()) if isinstance(mode, Mapping) else [mode]


def check_task(model: str, task: str, final: Mapping[str, Any]) -> None:
    """Refuse metrics and evaluation modes that do not belong to what the model predicts.

    Raises:
        InputError: an unknown metric, or one or a mode of the other task.
    """
    click = task == "click"
    kind, words = (VALUE, "predicts clicks") if click else (RANKING, "ranks items")
    kinds = {name.lower(): of for name, of in metric_kinds().items()}
    by_category = {name.lower(): needs for name, needs in LIST_METRICS.items()}
    for metric in as_list(final["metrics"]):
        if metric.lower() not in kinds:
            hint = suggestion(metric, metric_kinds())
            raise InputError("metrics", f"there is no metric named '{metric}'{hint}", kind="unknown")
        if kinds[metric.lower()] != kind:
            fitting = ", ".join(sorted(name for name, of in metric_kinds().items() if of == kind))
            raise InputError(
                "metrics", f"{model} {words}, so '{metric}' does not apply; choose from: {fitting}", kind="conflict"
            )
        if by_category.get(metric.lower()) == CATEGORIES and not final["category_field"]:
            raise InputError(
                "category_field", f"metric '{metric}' is over categories; name an item field", kind="missing"
            )
    if final["beyond_accuracy"] and (click or final["candidates"]):
        raise InputError(
            "beyond_accuracy",
            "it is about ranked lists, and by clicks or among candidates nothing is ranked; leave it out",
            kind="conflict",
        )
    for value in modes_of(final["eval_args"]):
        if not re.fullmatch("labeled" if click else r"full|(uni|pop)[1-9][0-9]{0,6}", str(value)):
            allowed = "labeled" if click else "full, uni<n> or pop<n>"
            if not click and re.fullmatch(r"(uni|pop)[0-9]{8,}", str(value)):
                allowed += " with n < 10,000,000"
            if value == "labeled":
                allowed += f"; by labels are evaluated: TALLRec, FM, LR and their like, {', '.join(CLICK_IF_ASKED)}"
            raise InputError(
                "eval_args", f"mode: {model} {words}, so '{value}' does not apply; give {allowed}", kind="conflict"
            )


def check_candidates(model: str, is_llm: bool, task: str, final: Mapping[str, Any]) -> None:
    """Refuse what would rank items by a prompt that lists candidates, the target among them.

    Raises:
        InputError: the setting that does not go with ``candidates``.
    """
    if task == "click":
        raise InputError(
            "candidates",
            f"{model} predicts clicks and does not choose among titles; leave candidates out",
            kind="conflict",
        )
    for value in modes_of(final["eval_args"]):
        if value != "full":
            raise InputError(
                "eval_args",
                f"mode: '{value}' samples items to rank, and candidates samples titles to choose from; set mode: full, "
                "or leave candidates out",
                kind="conflict",
            )
    for key, allowed in (("grounding", ("embedding", "likelihood")), ("reweight", ("none",))):
        if is_llm and final[key] not in allowed:
            raise InputError(
                key,
                f"'{final[key]}' ranks the catalogue, and with candidates nothing is ranked; set "
                f"--{key}={' or '.join(allowed)}, or leave candidates out",
                kind="conflict",
            )


def check_axes_of_clicks(model: str, final: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Refuse settings for generated text: an answer of Yes or No has none.

    Raises:
        InputError: the axis that does not apply.
    """
    if final["history_policy"] != "fixed":
        raise InputError(
            "history_policy",
            f"{model} answers Yes or No, and '{final['history_policy']}' is rewarded by titles; leave it out",
            kind="conflict",
        )
    for key in NOT_FOR_CLICKS:
        if key in user if key == "grounding" else final[key] != OMITTED.get(key, "none"):
            raise InputError(
                key, f"{model} answers Yes or No, so '{final[key]}' does not apply; leave {key} out", kind="conflict"
            )


def mixed_tasks(click_model: str, ranking_model: str) -> InputError:
    """The error of models that predict clicks beside models that rank items: they share no metric."""
    return InputError(
        "model",
        f"{click_model} predicts clicks and {ranking_model} ranks items: they cannot share a table; run them "
        'separately, or evaluate all by labels: --eval_args="{mode: labeled}"',
        kind="conflict",
    )


def check_same_candidates(runs: Sequence[Settings]) -> None:
    """Refuse models of one table that would be evaluated among different candidates.

    Args:
        runs: the settings of each, resolved.

    Raises:
        InputError: the first setting that differs.
    """
    for other in runs[1:]:
        own = [(key, runs[0][key], other[key]) for key in _deciding_keys(runs[0], other)]
        for key, one, another in [*own, ("eval_args", *(_tested_by(run["eval_args"]) for run in (runs[0], other)))]:
            if one != another:
                raise InputError(
                    key,
                    f"{runs[0]['model']} has {one} and {other['model']} {another}; models that share a table are "
                    "evaluated among the same candidates, or all without: give both the same",
                    kind="conflict",
                )


def _deciding_keys(*runs: Settings) -> Sequence[str]:
    """The settings that decide among which items the rows of runs are evaluated, besides the mode."""
    if any(run["candidates"] for run in runs):
        return DRAWS_CANDIDATES
    modes = [mode for run in runs for mode in modes_of(run["eval_args"])]
    if any(map(is_sampled, modes)):
        return "candidates", "repeatable", "sample_seed"
    return ("candidates", "repeatable") if "full" in modes else ("candidates",)


def _tested_by(eval_args: Mapping[str, Any]) -> str:
    """The evaluation mode of the test rows, as a user writes it."""
    mode = eval_args["mode"]
    return f"mode: {mode['test'] if isinstance(mode, Mapping) else mode}"


def check_same_rows(runs: Sequence[Settings]) -> None:
    """Refuse models of one table whose settings draw other rows to evaluate.

    What else decides over rows, such as intervals, need not change them: those are compared once they are read.

    Args:
        runs: the settings of each, resolved.

    Raises:
        InputError: the first setting that differs.
    """
    first, *others = runs
    for other in others:
        for key in EVALUATED_ROWS:
            if _drawn_by(first[key]) != _drawn_by(other[key]):
                raise other_rows(key, other["model"], first["model"])


def check_one_history(runs: Sequence[Settings]) -> None:
    """Refuse models of one table that are shown histories of different lengths when they are evaluated.

    Args:
        runs: the settings of each that reads histories, resolved.

    Raises:
        InputError: two that differ.
    """
    key = "MAX_ITEM_LIST_LENGTH"
    for other in runs[1:]:
        if other[key] != runs[0][key]:
            shown = f"{other['model']} reads {other[key]} items of history and {runs[0]['model']} {runs[0][key]}"
            raise InputError(
                key, f"{shown}: models of one table are evaluated at one length; give all the same", kind="conflict"
            )


def _drawn_by(value: object) -> Any:
    """What of a setting decides which rows there are: of ``eval_args`` all but what is ranked."""
    return {key: part for key, part in value.items() if key != "mode"} if isinstance(value, Mapping) else value


def other_rows(key: str, label: str, other: str) -> InputError:
    """The refusal of runs of one table that are evaluated on different rows."""
    return InputError(
        key,
        f"{label} would be evaluated on other rows than {other}: give all models the same eval_args, intervals and "
        "sample sizes",
        kind="conflict",
    )


def chosen_valid_metric(final: Mapping[str, Any], is_llm: bool, user: Mapping[str, Any], default: str) -> str:
    """What chooses the epoch.

    Args:
        final: resolved settings.
        is_llm: whether the model is LLM-based; only such a model is validated by its loss.
        user: what the user set.
        default: the property files' ``valid_metric``, which RecBole's models keep in place of ``loss``.

    Raises:
        InputError: see :func:`computed_valid_metric`.
    """
    by_loss = str(final["valid_metric"]).lower() == LOSS
    if is_llm and by_loss:
        return LOSS
    if is_llm and final["candidates"]:
        return "hit_ratio"
    if not by_loss:
        return computed_valid_metric(final, "valid_metric" in user)
    log.info("valid_metric: loss is for LLM models; RecBole's models keep their own.")
    return computed_valid_metric({**final, "valid_metric": default}, is_given=False)


def computed_valid_metric(final: Mapping[str, Any], is_given: bool) -> str:
    """The metric that chooses the epoch, which must be among those that are computed.

    Args:
        final: resolved settings.
        is_given: whether the user set ``valid_metric``; the nearest one that is computed takes its place otherwise.

    Raises:
        InputError: the user's is not computed.
    """
    metric, cutoffs = final["valid_metric"], as_list(final["topk"])
    computed = [name for of in as_list(final["metrics"]) for name in _computed(of, cutoffs)]
    if metric.lower() in (name.lower() for name in computed):
        return str(metric)
    if is_given:
        hint = suggestion(metric, computed, f"; choose from: {', '.join(computed)}")
        raise InputError("valid_metric", f"'{metric}' is not computed by metrics and topk{hint}", kind="conflict")
    wanted, _, cutoff = metric.lower().partition("@")
    near = min(computed, key=lambda name: (not name.lower().startswith(wanted + "@"), _distance(name, cutoff)))
    log.info("valid_metric is %s: metrics and topk do not compute %s.", near, metric)
    return near


def _computed(metric: str, cutoffs: Sequence[int]) -> list[str]:
    """Names of a metric's results: one per cut-off, except for those over the whole ranking."""
    kinds = {name.lower(): of for name, of in metric_kinds().items()}
    whole = kinds[metric.lower()] == VALUE or metric.lower() == "gauc"
    return [metric] if whole else [f"{metric}@{cutoff}" for cutoff in cutoffs]


def _distance(name: str, cutoff: str) -> int:
    own = name.partition("@")[2]
    return abs(int(own) - int(cutoff)) if own and cutoff.isdigit() else 0
