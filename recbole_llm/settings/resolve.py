"""The settings of one run, resolved and checked from files alone: neither RecBole nor torch is imported.

:class:`~recbole_llm.settings.config.Config` is RecBole's config of what is resolved here, so both accept and refuse the
same.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from recbole_llm.errors import InputError
from recbole_llm.history.settings import check_sar
from recbole_llm.logs import check_level
from recbole_llm.property_files import load_yaml
from recbole_llm.registry import find_choice, suggestion
from recbole_llm.rerank.settings import check_rerank
from recbole_llm.semantic_ids.solid_settings import check_solid
from recbole_llm.settings.data_folder import check_path, find_data, own_properties
from recbole_llm.settings.declarations import llm_keys
from recbole_llm.settings.defaults import (
    GIVEN,
    SEVERAL_RUNS,
    given_names,
    known_keys,
    read_properties,
    settings_of,
)
from recbole_llm.settings.derived import both_modes, columns_to_load, negative_samples
from recbole_llm.settings.llm_checks import check_components, check_stages
from recbole_llm.settings.models import ModelFacts, facts_by_name, facts_of, model_names, recbole_models
from recbole_llm.settings.readers import yielded
from recbole_llm.settings.recommender_checks import check_own_data
from recbole_llm.settings.schema import check_known, check_value
from recbole_llm.settings.stage_checks import (
    check_order,
    check_test_rows,
    has_rows,
    resolved_unit,
)
from recbole_llm.settings.task_checks import (
    check_axes_of_clicks,
    check_candidates,
    check_task,
    chosen_valid_metric,
)
from recbole_llm.settings.values import split_names

MODEL_CHECKS = {"SAR": check_sar, "SOLID": check_solid}  # of models of ours that are no LLM recommenders
log = logging.getLogger(__name__)
# Settings that name a file or folder, or may.
PATHS = (
    "data_path",
    "checkpoint_dir",
    "coreset_file",
    "sd_file",
    "llm_path",
    "coreset_encoder",
    "pre_model_path",
    "domain",
)
_NAMES = ("model", "dataset")  # what a run is of, no setting with a default


@dataclass(frozen=True)
class Resolution:
    """What a run uses, before RecBole's config adds what only it knows. Answers None for a setting it lacks.

    Attributes:
        model: name of the model or preset.
        facts: facts of the class that is built.
        dataset: name of the data set.
        user: what the user set, by name.
        defaults: the property files'.
        final: the settings of the run.
    """

    model: str
    facts: ModelFacts
    dataset: str
    user: Mapping[str, Any]
    defaults: Mapping[str, Any]
    final: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.final.get(key)

    @property
    def task(self) -> str:
        """What the model predicts: ``"next-item"`` or ``"click"``."""
        return _task(self.facts, self.user)

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """What the user set otherwise than the property files: key to the value of the run and the default."""
        own = {key: (self.final.get(key), self.defaults.get(key)) for key in self.user if key not in _NAMES}
        return {key: pair for key, pair in own.items() if pair[0] != pair[1]}


def _task(facts: ModelFacts, user: Mapping[str, Any]) -> str:
    eval_args = user.get("eval_args")
    mode = eval_args.get("mode") if isinstance(eval_args, Mapping) else None
    return facts.task("labeled" in (mode.values() if isinstance(mode, Mapping) else [mode]))


def resolve(model: str | type | None, dataset: str | None, user: Mapping[str, Any]) -> Resolution:
    """Resolve the settings of one model on one data set.

    Args:
        model: name of a model or preset, or a class; the user's key ``model`` if None.
        dataset: name of the data set; the user's key ``dataset`` if None.
        user: what the user set, values parsed; later sources have already won. With a key ``given``, as the config.yaml
            of a run has it, only the settings it names are the user's, the others defaults as they were resolved then.

    Raises:
        InputError: no such model or data set, an unknown key, or a value that its key does not take.
    """
    everything = {key: _listed(key, value) for key, value in user.items()}
    given = given_names(everything)
    is_record = everything.pop(GIVEN, None) is not None
    user = {key: value for key, value in everything.items() if key in given}
    model = everything.get("model") if model is None else model
    dataset = everything.get("dataset") if dataset is None else dataset
    _check_before_reading(model, dataset, everything)
    if not model or not dataset:
        missing = "dataset" if model else "model"
        raise InputError(missing, f"no {missing} is given; set it by name, for example BIGRec, ml-100k", kind="missing")
    if isinstance(model, type):
        name, facts = model.__name__, facts_of(model)
    elif len(split_names(model)) > 1:
        raise InputError(
            "model",
            f"'{model}' names several models; a config is for one, see recbole_llm.quick_start",
            kind="conflict",
        )
    else:
        name, facts = model, facts_by_name(model, everything.get("llm_recommender"))
    task = _task(facts, user)
    defaults = read_properties(name, facts, dataset, everything.get("llm_path"), task)
    own = own_properties(dataset, str(everything.get("data_path", defaults["data_path"])))
    if own is not None:
        _check_own(own, name, facts, dataset, defaults)
        defaults = read_properties(name, facts, dataset, everything.get("llm_path"), task, own)
    # A run's record also holds what the property file beside its data made known, which may say something else now.
    recorded = known_keys("BIGRec", dataset) if is_record else frozenset()
    _check_settings(name, facts, everything, defaults, recorded)
    if facts.is_llm and user.get("recommender_config"):
        recommender = everything.get("recommender", defaults["recommender"])
        _check_recommender(name, recommender, dataset, user["recommender_config"])
    defaults.update({key: value for key, value in everything.items() if key not in given})
    final = _finish(name, facts, dataset, task, user, defaults)
    return Resolution(name, facts, dataset, user, defaults, final)


def _check_before_reading(model: object, dataset: object, user: Mapping[str, Any]) -> None:
    """Names and paths that decide which property files are read."""
    for key, name in (("model", model), ("dataset", dataset)):
        if name and not isinstance(name, str) and not (key == "model" and isinstance(name, type)):
            raise InputError(key, f"{name!r} is no name; give it as text")
    for key in ("llm_recommender", "llm_path", "data_path"):
        if key in user:
            llm_keys()[key].check(user[key])
    for key in PATHS:
        if isinstance(user.get(key), str):
            check_path(key, user[key])
    if isinstance(dataset, str):
        check_path("dataset", dataset)


def _check_settings(
    model: str,
    facts: ModelFacts,
    user: Mapping[str, Any],
    defaults: Mapping[str, Any],
    also: frozenset[str] = frozenset(),
) -> None:
    """Names, of which those in ``also`` are known besides, and values, each for itself."""
    known = settings_of(model, facts.is_llm, defaults) | also
    if model not in model_names():  # a class from elsewhere: no property file lists its settings
        known |= set(user)
    for key, value in user.items():
        if key in SEVERAL_RUNS:
            raise InputError(key, "a run has no such setting; several runs side by side are compared", kind="conflict")
        check_known(key, known, model)
        check_value(key, value, defaults.get(key), facts.is_llm)
    recommender = user.get("recommender", "SASRec")
    if recommender not in recbole_models():
        hint = suggestion(recommender, recbole_models())
        raise InputError("recommender", f"RecBole has no model named '{recommender}'{hint}", kind="unknown")


def _check_own(file: Path, model: str, facts: ModelFacts, dataset: str, defaults: Mapping[str, Any]) -> None:
    """The property file beside a data set's files, which is of models of every kind."""
    known = settings_of(model, facts.is_llm, defaults) | known_keys("BIGRec", dataset)
    for key, value in load_yaml(file).items():
        check_known(key, known, model, f"{file}: ")
        check_value(key, value, defaults.get(key), facts.is_llm)


def _check_recommender(model: str, name: str, dataset: str, settings: Mapping[str, Any]) -> None:
    """Settings of the auxiliary recommender of a model."""
    facts = facts_by_name(name)
    _check_settings(name, facts, settings, read_properties(name, facts, dataset))
    check_own_data(model, name, settings)


def _finish(
    model: str, facts: ModelFacts, dataset: str, task: str, user: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What the run uses, checked as a whole."""
    final = copy.deepcopy({**defaults, **user})
    if facts.is_llm:
        final.update(yielded(final, user))
    final["eval_args"] = copy.deepcopy({**defaults["eval_args"], **user.get("eval_args", {})})
    if facts.is_llm:
        final["llm_recommender"] = facts.class_name
    if task != "click" and "threshold" not in user:
        final["threshold"] = None  # a data set's own is for models of clicks
    if "load_col" not in user:
        final["load_col"] = columns_to_load(facts, task, final)
    final["train_neg_sample_args"] = negative_samples(model, facts, task, final, user.get("train_neg_sample_args"))
    if "epochs" in user and "pretrain_epochs" in final and "pretrain_epochs" not in user:
        final["pretrain_epochs"] = final["epochs"]  # S3Rec's pretraining would go on for its own 500 epochs
    check_level(final["state"])
    check_task(model, task, final)
    final["eval_args"]["mode"] = both_modes(final["eval_args"]["mode"])
    if facts.is_llm and task == "click":
        check_axes_of_clicks(model, final, user)
    if final["candidates"]:
        check_candidates(model, facts.is_llm, task, final)
    final["valid_metric"] = chosen_valid_metric(final, facts.is_llm, user, str(defaults["valid_metric"]))
    if facts.type == "SEQUENTIAL" and not final["repeatable"]:
        raise InputError(
            "repeatable",
            "Sequential models currently only support repeatable recommendation; set it True",
            kind="conflict",
        )
    final["model"], final["dataset"] = model, dataset
    final["data_path"] = find_data(dataset, str(final["data_path"]), "data_path" in user)
    check_test_rows(final)
    check_order(final)
    check_rerank(model, task, facts.is_llm, final, has_rows(final, "valid"))
    if model in MODEL_CHECKS:
        MODEL_CHECKS[model](final)
    if facts.is_llm:
        final["train_unit"] = resolved_unit(model, task, cast(type, find_choice("adapter", final["adapter"])), final)
        check_components(final)
        check_stages(model, facts, task, final)
    return final


def _listed(key: str, value: object) -> Any:
    """Tuples as lists, and ``NDCG,Hit`` as the list that ``metrics`` wants."""
    if key == "metrics" and isinstance(value, str):
        return split_names(value)
    return list(value) if isinstance(value, tuple) and key != "gpu_id" else value
