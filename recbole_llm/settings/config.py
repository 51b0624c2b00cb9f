"""Settings of one run: RecBole's config with our models and property files, keys and values checked."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecBoleConfig
from recbole.evaluator import metric_types, metrics_dict
from recbole.utils import EvaluatorType, ModelType, dataset_arguments, evaluation_arguments, general_arguments

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.errors import InputError
from recbole_llm.property_files import PropertyLoader, find_config_file, find_properties, load_yaml, recbole_folder
from recbole_llm.registry import AXES, suggestion
from recbole_llm.settings.command import (
    Command,
    check_prefixes,
    parse_argv,
    parse_command,
    parse_setting,
    settings_for,
    split_by_model,
    split_names,
)
from recbole_llm.settings.defaults import (
    CLICK_IF_ASKED,
    known_keys,
    read_properties,
    settings_of,
    task_of,
    union_columns,
)
from recbole_llm.settings.models import find_model, is_llm_model, model_names, recbole_models
from recbole_llm.settings.schema import check_known, check_value

__all__ = [
    "Command",
    "Config",
    "find_properties",
    "known_keys",
    "parse_command",
    "settings_for",
    "task_of",
    "union_load_col",
]

log = logging.getLogger(__name__)

# What a trained model does not depend on: where it ran, what was printed, and how much memory a batch took.
NOT_LEARNED = frozenset(
    "gpu_id use_gpu device worker state data_path checkpoint_dir show_progress log_wandb wandb_project verbose "
    "config_file save_dataset dataset_save_path save_dataloaders dataloaders_save_path local_rank single_spec metrics "
    "topk eval_batch_size metric_decimal_place loss_decimal_place test_sample_size micro_batch_tokens "
    "generation_batch_tokens category_field candidates title_field title_with".split()
)
NOT_FOR_CLICKS = ("curriculum", "grounding", "reweight")  # they work on generated text


# ----------------------------------------------------------------------------------------------------- the settings


class Config(RecBoleConfig):
    """RecBole's config for RecBole's models and ours.

    Later wins: property files (:func:`read_properties`), ``config_file_list``, ``config_dict``, ``argv``.

    Args:
        model: name of a model or preset, or a class; if None, the key ``model`` of what follows.
        dataset: name of a data set; if None, the key ``dataset`` of what follows.
        config_file_list: YAML files, later ones win.
        config_dict: settings by name; texts are read as on the command line.
        argv: words of a command line, without the program's name. The process's own are never read.

    Raises:
        InputError: no such model or data set, an unknown key, or a value that its key does not take.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
    ) -> None:
        self._argv = list(argv or ())
        self._given_model = model
        try:
            super().__init__(model, dataset, config_file_list, config_dict)
        except InputError:
            raise
        except (ValueError, NotImplementedError) as error:  # RecBole's own checks
            raise InputError(" ".join(str(error).split())) from error

    @property
    def is_llm(self) -> bool:
        """Whether the model is LLM-based."""
        return is_llm_model(self.model_class)

    @property
    def task(self) -> str:
        """What the model predicts: ``"next-item"`` or ``"click"``."""
        eval_args = self.external_config_dict.get("eval_args")
        mode = eval_args.get("mode") if isinstance(eval_args, Mapping) else None
        return task_of(self.model_class, "labeled" in (mode.values() if isinstance(mode, Mapping) else [mode]))

    def effective_point(self) -> str:
        """The model and where it stands on the axes, presets and flags resolved; just the name for RecBole's models."""
        if not self.is_llm:
            return self.model
        built_on = ["llm_recommender"] if self.model_class.__name__ != self.model else []
        axes = [axis for axis in AXES if self.task != "click" or axis not in NOT_FOR_CLICKS]
        axes += ["candidates"] if self["candidates"] else []
        return f"{self.model} ({', '.join(f'{key}={self[key]}' for key in [*built_on, *axes])})"

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data that YAML and JSON can write, sorted by name."""
        return {key: _plain(self.final_config_dict[key]) for key in sorted(self.final_config_dict)}

    def settings(self) -> dict[str, Any]:
        """The same without what RecBole found out by itself and what does not apply: a config file for the same run."""
        known = settings_of(self.model, self.model_class, self.internal_config_dict) | set(self.external_config_dict)
        if self.task == "click":
            known = known.difference(NOT_FOR_CLICKS)
        return {key: value for key, value in self.to_dict().items() if key in known}

    def learning_facts(self) -> dict[str, Any]:
        """The settings that decide what the model learns, for a stage's fingerprint; data and rows are not in it."""
        return {key: value for key, value in self.to_dict().items() if key not in NOT_LEARNED}

    def for_auxiliary(self, name: str) -> Config:
        """The config of an auxiliary recommender on this run's data.

        It takes over the user's environment, data and evaluation settings, and ``recommender_config``, but nothing
        about training: that was meant for the LLM.

        Args:
            name: a RecBole model.
        """
        ours = ("worker", "valid_sample_size", "sample_seed", "windows", "encoding", "bad_lines")
        carried = {*general_arguments, *dataset_arguments, *ours}
        if task_of(find_model(name)) == self.task:
            carried.update(evaluation_arguments)
        settings = {key: value for key, value in self.external_config_dict.items() if key in carried}
        config = Config(name, self.dataset, config_dict={**settings, **(self["recommender_config"] or {})})
        config["load_col"] = copy.deepcopy(self["load_col"])
        return config

    # ---- what the user gave

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = {category: list(names) for category, names in self.parameters.items()}

    def _build_yaml_loader(self) -> type[PropertyLoader]:
        return PropertyLoader

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for file in file_list or ():
            settings.update(load_yaml(find_config_file(file)))
        return settings

    def _convert_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: parse_setting(key, value) if isinstance(value, str) else copy.deepcopy(value)
            for key, value in config_dict.items()
        }

    def _load_cmd_line(self) -> dict[str, Any]:
        return parse_argv(self._argv)

    def _merge_external_config_dict(self) -> None:
        super()._merge_external_config_dict()
        shared, per_model = split_by_model(self.external_config_dict)
        model = shared.get("model") if self._given_model is None else self._given_model
        name = model.__name__ if isinstance(model, type) else str(model)
        check_prefixes(per_model, [name])
        self.external_config_dict = {
            key: _listed(key, value) for key, value in {**shared, **per_model.get(name, {})}.items()
        }

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        user = self.external_config_dict
        model = user.get("model") if model is None else model
        dataset = user.get("dataset") if dataset is None else dataset
        if not model or not dataset:
            raise InputError(
                f"no {'dataset' if model else 'model'} is given; set it by name, for example BIGRec, ml-100k"
            )
        if isinstance(model, type):
            return model.__name__, model, dataset
        if len(split_names(model)) > 1:
            raise InputError(f"model: '{model}' names several models; a config is for one, see recbole_llm.quick_start")
        return model, find_model(model, user.get("llm_recommender")), dataset

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        self.internal_config_dict = read_properties(
            model, model_class, dataset, self.external_config_dict.get("llm_path"), self.task
        )
        if self.is_llm:
            listed = {name for names in self.parameters.values() for name in names}
            overall = load_yaml(find_properties() / "overall.yaml")
            self.parameters["LLM"] = [key for key in overall if key not in listed]
        self._check_settings()

    def _check_settings(self) -> None:
        known = settings_of(self.model, self.model_class, self.internal_config_dict)
        if self.model not in model_names():  # a class from elsewhere: no property file lists its settings
            known |= set(self.external_config_dict)
        for key, value in self.external_config_dict.items():
            check_known(key, known, self.model)
            check_value(key, value, self.internal_config_dict.get(key), self.is_llm)
        recommender = self.external_config_dict.get("recommender", "SASRec")
        if recommender not in recbole_models():
            hint = suggestion(recommender, recbole_models())
            raise InputError(f"recommender: RecBole has no model named '{recommender}'{hint}")

    # ---- what the run uses

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = super()._get_final_config_dict()
        user, defaults = self.external_config_dict, self.internal_config_dict
        final["eval_args"] = {**defaults["eval_args"], **user.get("eval_args", {})}
        if self.is_llm:
            final["llm_recommender"] = self.model_class.__name__
        if self.task != "click" and "threshold" not in user:
            final["threshold"] = None  # a data set's own is for models of clicks
        if "load_col" not in user:
            final["load_col"] = self._columns(final)
        final["train_neg_sample_args"] = self._negatives(final)
        if "epochs" in user and "pretrain_epochs" in final and "pretrain_epochs" not in user:
            final["pretrain_epochs"] = final["epochs"]  # S3Rec's pretraining would go on for its own 500 epochs
        _check_task(self.model, self.task, final)
        if self.is_llm and self.task == "click":
            _check_axes_of_clicks(self.model, final, user)
        if final["candidates"]:
            _check_candidates(self.model, self.is_llm, self.task, final)
        final["valid_metric"] = self._valid_metric(final)
        return final

    def _columns(self, final: Mapping[str, Any]) -> dict[str, Any] | None:
        """Columns to load: the property files', and those that the settings name."""
        inter = [final[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        if self.task == "click":  # what says whether it was a click, if there is such a column
            inter += [final["LABEL_FIELD"], *(final["threshold"] or ())]
        named = {"inter": [column for column in inter if column]}
        item = [final["category_field"]]
        if self.is_llm or final["candidates"]:
            item += [final["title_field"], final["title_with"]]
        if self.is_llm:
            item += final["item_text_fields"] or ()
        if any(item):
            named["item"] = [final["ITEM_ID_FIELD"], *(column for column in item if column)]
        # RecBole does not take both lists of one file: what a user leaves out is left out of everything.
        everything = dict.fromkeys(final["unload_col"] or (), "*")
        return union_columns([final["load_col"], named, everything])

    def _negatives(self, final: Mapping[str, Any]) -> Any:
        """Negative samples for training: none where the loss is over the whole catalogue or the text."""
        given = self.external_config_dict.get("train_neg_sample_args")
        if isinstance(given, Mapping) and given.get("distribution") == "none":  # what RecBole resolves None to
            given = None
        if final["MODEL_TYPE"] == ModelType.TRADITIONAL:  # they learn by counting: Pop would count negatives as well
            return None
        if self.task == "click":
            if given is not None:
                raise InputError(
                    f"train_neg_sample_args: {self.model} learns from labels, which RecBole's negative samples would "
                    "replace; leave it out"
                )
            return None
        by_loss = not hasattr(self.model_class, "input_type") and final.get("loss_type") == "CE"
        if not self.is_llm and not (by_loss and final["MODEL_TYPE"] == ModelType.SEQUENTIAL):
            return final.get("train_neg_sample_args")
        if given is not None:
            raise InputError(
                f"train_neg_sample_args: {self.model} trains without negative samples; leave it out, or set it for "
                "another model alone (--BPR.train_neg_sample_args=...)"
            )
        return None

    def _valid_metric(self, final: Mapping[str, Any]) -> str:
        """The metric that chooses the epoch, which must be among those that are computed."""
        if self.is_llm and final["candidates"]:
            return "hit_ratio"
        metric, cutoffs = final["valid_metric"], _as_list(final["topk"])
        computed = [name for of in _as_list(final["metrics"]) for name in _computed(of, cutoffs)]
        if metric.lower() in (name.lower() for name in computed):
            return metric
        if "valid_metric" in self.external_config_dict:
            hint = suggestion(metric, computed, f"; choose from: {', '.join(computed)}")
            raise InputError(f"valid_metric: '{metric}' is not computed by metrics and topk{hint}")
        wanted, _, cutoff = metric.lower().partition("@")
        near = min(computed, key=lambda name: (not name.lower().startswith(wanted + "@"), _distance(name, cutoff)))
        log.info("valid_metric is %s: metrics and topk do not compute %s.", near, metric)
        return near

    def _set_default_parameters(self) -> None:
        given = str(self.final_config_dict["data_path"])
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = self._find_data(given, self.final_config_dict["data_path"])

    def _find_data(self, given: str, by_recbole: str) -> str:
        """Folder of the data set: in ``data_path`` or that itself; else RecBole's own copy, or where RecBole puts it.

        Raises:
            InputError: it is nowhere.
        """
        name = self.dataset
        if name != "ml-100k" or "data_path" in self.external_config_dict:
            for folder in (os.path.join(given, name), given):
                if _has_data(Path(folder), name):
                    return folder
        urls = load_yaml(recbole_folder() / "properties" / "dataset" / "url.yaml")
        if name == "ml-100k" or name in urls and not os.path.isdir(by_recbole):
            return by_recbole
        place = Path(given)
        if not place.is_dir():
            hint = suggestion(name, ["ml-100k"], "; set data_path to the right one")
            raise InputError(f"no data set '{name}': the folder {given} does not exist{hint}")
        found = sorted(folder.name for folder in place.iterdir() if _has_data(folder, folder.name))
        there = f"; found there: {', '.join(found[:20]) or 'none'}"
        raise InputError(f"no data set '{name}' in {given}{there}{suggestion(name, found, '; set data_path')}")

    def _init_device(self) -> None:
        final, environment = self.final_config_dict, os.environ
        if isinstance(final["gpu_id"], list | tuple):
            final["gpu_id"] = ",".join(map(str, final["gpu_id"]))
        launched = "LOCAL_RANK" in environment or any(name.startswith("ACCELERATE_") for name in environment)
        if final["use_gpu"] and not launched:
            super()._init_device()
            return
        # The launcher has already given each process its GPU: CUDA_VISIBLE_DEVICES stays as it is.
        rank = int(environment.get("LOCAL_RANK", 0))
        wanted = final["use_gpu"] and environment.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
        final["gpu_id"] = str(final["gpu_id"])
        final["single_spec"], final["local_rank"] = True, 0
        final["device"] = torch.device("cuda", rank) if wanted and torch.cuda.is_available() else torch.device("cpu")
        if rank:
            final["state"], final["show_progress"] = "error", False


# ---------------------------------------------------------------------------------------------------------- columns


def union_load_col(configs: Iterable[RecBoleConfig]) -> dict[str, Any] | None:
    """The columns that all models of a command load, so that they see the same data.

    Returns:
        ``load_col`` as RecBole reads it: file suffix to field names, ``"*"`` for all of a file; None loads everything.
    """
    return union_columns([config["load_col"] for config in configs])


# ------------------------------------------------------------------------------------------------------------- data


def _has_data(folder: Path, name: str) -> bool:
    """Whether a folder holds interactions of a data set, whole (``<name>.inter``) or split (``<name>.train.inter``)."""
    return folder.is_dir() and any(
        file.name.startswith(f"{name}.") and file.name.endswith(".inter") for file in folder.iterdir()
    )


# ---------------------------------------------------------------------------------------------------------- metrics


def _check_task(model: str, task: str, final: Mapping[str, Any]) -> None:
    """Refuse metrics and evaluation modes that do not belong to what the model predicts."""
    mode, click = final["eval_args"]["mode"], task == "click"
    kind, words = (EvaluatorType.VALUE, "predicts clicks") if click else (EvaluatorType.RANKING, "ranks items")
    metrics = {known.__name__: metric_types[name] for name, known in metrics_dict.items()}
    fitting = sorted(name for name in metrics if metrics[name] == kind)
    for metric in _as_list(final["metrics"]):
        if metric.lower() not in metric_types:
            raise InputError(f"metrics: there is no metric named '{metric}'{suggestion(metric, metrics)}")
        if metric_types[metric.lower()] != kind:
            raise InputError(
                f"metrics: {model} {words}, so '{metric}' does not apply; choose from: {', '.join(fitting)}"
            )
    for value in mode.values() if isinstance(mode, Mapping) else [mode]:
        if not re.fullmatch("labeled" if click else r"full|(uni|pop)[1-9]\d*", str(value)):
            allowed = "labeled" if click else "full, uni<n> or pop<n>"
            if value == "labeled":
                allowed += f"; by labels are judged: TALLRec, FM, LR and their like, {', '.join(CLICK_IF_ASKED)}"
            raise InputError(f"eval_args: mode: {model} {words}, so '{value}' does not apply; give {allowed}")


def _check_candidates(model: str, is_llm: bool, task: str, final: Mapping[str, Any]) -> None:
    """Refuse what would rank items by a prompt that lists candidates, the target among them."""
    if task == "click":
        raise InputError(f"candidates: {model} predicts clicks and chooses among no titles; leave candidates out")
    mode = final["eval_args"]["mode"]
    for value in mode.values() if isinstance(mode, Mapping) else [mode]:
        if value != "full":
            raise InputError(
                f"eval_args: mode: '{value}' samples items to rank, and candidates samples titles to choose from; set "
                "mode: full, or leave candidates out"
            )
    for key, allowed in (("grounding", ("embedding", "likelihood")), ("reweight", ("none",))):
        if is_llm and final[key] not in allowed:
            raise InputError(
                f"{key}: '{final[key]}' ranks the catalogue, and a prompt that lists candidates ranks nothing; set "
                f"--{key}={' or '.join(allowed)}, or leave candidates out"
            )


def _check_axes_of_clicks(model: str, final: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Refuse what is made of generated text: the answer to a question of Yes or No has none."""
    for key in NOT_FOR_CLICKS:
        if key in user if key == "grounding" else final[key] != "none":
            raise InputError(f"{key}: {model} answers Yes or No, so '{final[key]}' does not apply; leave {key} out")


def _computed(metric: str, cutoffs: Sequence[int]) -> list[str]:
    """Names of a metric's results: one per cut-off, except for those over the whole ranking."""
    whole = metric_types[metric.lower()] == EvaluatorType.VALUE or metric.lower() == "gauc"
    return [metric] if whole else [f"{metric}@{cutoff}" for cutoff in cutoffs]


def _distance(name: str, cutoff: str) -> int:
    own = name.partition("@")[2]
    return abs(int(own) - int(cutoff)) if own and cutoff.isdigit() else 0


# ----------------------------------------------------------------------------------------------------------- values


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed(key: str, value: Any) -> Any:
    """Tuples as lists, and ``NDCG,Hit`` as the list that ``metrics`` wants."""
    if key == "metrics" and isinstance(value, str):
        return split_names(value)
    return list(value) if isinstance(value, tuple) and key != "gpu_id" else value


def _plain(value: Any) -> Any:
    """A setting as plain data: enumerations and devices by name, sets and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Enum):
        return value.name
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
