"""``Config``: RecBole's config of the settings that :mod:`recbole_llm.settings.resolve` resolves and checks."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecBoleConfig

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.declare import keys_of
from recbole_llm.distributed import check_devices, launched
from recbole_llm.errors import InputError
from recbole_llm.llm.settings import NAMED
from recbole_llm.property_files import PropertyLoader, find_config_file, find_properties, load_yaml
from recbole_llm.registry import AXES, OMITTED
from recbole_llm.rerank.settings import RerankSettings
from recbole_llm.settings.command import Layer, check_prefixes, layered, parse_argv, split_by_model
from recbole_llm.settings.defaults import GIVEN, recbole_arguments, settings_of
from recbole_llm.settings.metric_names import register_list_metrics
from recbole_llm.settings.models import find_model, task_of
from recbole_llm.settings.resolve import Resolution, resolve
from recbole_llm.settings.task_checks import LOSS, NOT_FOR_CLICKS
from recbole_llm.settings.values import parse_texts

__all__ = ["Config"]

register_list_metrics()

# What no metric depends on: where a run is computed, what is printed, and how much memory a batch takes. Not worker:
# RecBole draws the negatives of a batch where it is loaded.
NO_EFFECT = frozenset(
    "gpu_id use_gpu device state data_path checkpoint_dir show_progress log_wandb wandb_project verbose "
    "callbacks callback_project "
    "config_file save_dataset dataset_save_path save_dataloaders dataloaders_save_path local_rank single_spec "
    "eval_batch_size loss_decimal_place micro_batch_tokens generation_batch_tokens checkpoint_minutes".split()
)
# What a trained model does not depend on: that, and how its rankings are judged and put in order. Not
# metric_decimal_place: RecBole stops by rounded metrics.
NOT_LEARNED = NO_EFFECT.union(
    "metrics topk test_sample_size category_field head_share beyond_accuracy candidates title_field title_with".split(),
    (key.name for key in keys_of(RerankSettings).values()),
)
# Settings that name files or folders: a run folder's config.yaml must mean the same from another working folder.
FOLDERS = ("data_path", "checkpoint_dir")
FILES = ("coreset_file", "sd_file", "llm_path", "coreset_encoder", "semantic_encoder", "pre_model_path", "domain")


def files_in(settings: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders that settings name, by the setting's name; those that are there."""
    named = {key: settings[key] for key in FILES if isinstance(settings.get(key), str)}
    if Path(named.get("domain", "")).suffix != ".yaml":  # a name, whatever folder of such a name there is
        named.pop("domain", None)
    found = {key: Path(value).expanduser() for key, value in named.items() if value and value not in NAMED}
    return {key: path for key, path in found.items() if path.exists()}


class Config(RecBoleConfig):
    """RecBole's config, for RecBole's models and ours.

    Later sources win: property files (:func:`~recbole_llm.settings.defaults.read_properties`), ``config_file_list``,
    ``config_dict``, ``settings``, ``argv``.

    Args:
        model: name of a model or preset, or a class; None takes the key ``model`` from the other arguments.
        dataset: name of a data set; None takes the key ``dataset`` from the other arguments.
        config_file_list: YAML files, later ones win.
        config_dict: settings by name; strings are parsed as on the command line.
        argv: arguments of a command line, without the program's name. The process's own are never read.
        settings: settings by name, not parsed.

    Raises:
        InputError: no such model or data set, an unknown key, or a value that the key does not accept.

    Example:
        >>> config = Config("Pop", "ml-100k", settings={"topk": 5})
        >>> config["topk"], config.is_llm
        ([5], False)
    """

    numbering: Mapping[str, Sequence[str]] | None = None
    """Outside ids by the internal ones, of a run that is loaded again; None where ids are yet to get their numbers."""
    resolution: Resolution
    parameters: dict[str, list[str]]
    file_config_dict: dict[str, Any]
    variable_config_dict: dict[str, Any]
    cmd_config_dict: dict[str, Any]
    external_config_dict: dict[str, Any]
    final_config_dict: dict[str, Any]

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._argv = list(argv or ())
        self._settings = dict(settings or {})
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
        return self.resolution.facts.is_llm

    @property
    def task(self) -> str:
        """What the model predicts: ``"next-item"`` or ``"click"``."""
        return self.resolution.task

    def effective_point(self) -> str:
        """The model and where it stands on the axes, presets and flags resolved; just the name for RecBole's models."""
        if not self.is_llm:
            return str(self.model) if self["rerank"] == "none" else f"{self.model} (rerank={self['rerank']})"
        built_on = ["llm_recommender"] if self.model_class.__name__ != self.model else []
        axes = [axis for axis in AXES if self.task != "click" or axis not in NOT_FOR_CLICKS]
        axes = [axis for axis in axes if OMITTED.get(axis) != self[axis]]
        axes += ["candidates"] if self["candidates"] else []
        return f"{self.model} ({', '.join(f'{key}={self[key]}' for key in [*built_on, *axes])})"

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data that YAML and JSON can write, sorted by name."""
        return {key: _plain(self.final_config_dict[key]) for key in sorted(self.final_config_dict)}

    def settings(self) -> dict[str, Any]:
        """A config file for the same run, from any working folder.

        It omits what RecBole determined itself and what does not apply.
        """
        resolved = self.resolution
        known = settings_of(resolved.model, self.is_llm, resolved.defaults) | set(self.external_config_dict)
        if self.task == "click":
            known = known.difference(NOT_FOR_CLICKS)
        found = {key: value for key, value in self.to_dict().items() if key in known}
        found[GIVEN] = sorted(set(self.external_config_dict) & set(found))
        found.update((key, os.path.abspath(found[key])) for key in FOLDERS if isinstance(found.get(key), str))
        found.update((key, str(path.absolute())) for key, path in files_in(found).items())
        return found

    def learning_facts(self) -> dict[str, Any]:
        """The settings that decide what the model learns, for a stage's fingerprint; data and rows are not in it."""
        return {key: value for key, value in self.to_dict().items() if key not in NOT_LEARNED}

    def for_auxiliary(self, name: str, own: Mapping[str, Any] | None = None) -> Config:
        """The config of an auxiliary recommender on this run's data.

        It takes over the user's environment, data and evaluation settings, and its own, but nothing about training:
        that was meant for the LLM.

        Args:
            name: a RecBole model.
            own: its own settings; by default ``recommender_config``.
        """
        own = (self["recommender_config"] or {}) if own is None else own
        carried = {"worker", "valid_sample_size", "sample_seed", "windows", "encoding", "bad_lines", "quoting"}
        carried.update(recbole_arguments("general_arguments"), recbole_arguments("dataset_arguments"))
        if task_of(find_model(name)) == self.task:
            carried.update(recbole_arguments("evaluation_arguments"))
        settings = {key: value for key, value in self.external_config_dict.items() if key in carried}
        settings |= {key: self[key] for key in FOLDERS}
        config = Config(name, self.dataset, settings={**settings, **own})
        config["load_col"] = copy.deepcopy(self["load_col"])
        config.numbering = self.numbering
        return config

    # ---- what the user gave

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = {category: list(names) for category, names in self.parameters.items()}

    def _build_yaml_loader(self) -> type[PropertyLoader]:
        return PropertyLoader

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        self._files = [load_yaml(find_config_file(file)) for file in file_list or ()]
        return {key: value for content in self._files for key, value in content.items()}

    def _convert_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        return parse_texts(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        return {**copy.deepcopy(self._settings), **parse_argv(self._argv)}

    def _merge_external_config_dict(self) -> None:
        super()._merge_external_config_dict()
        model = self.external_config_dict.get("model") if self._given_model is None else self._given_model
        name = model.__name__ if isinstance(model, type) else str(model)
        sources = (*self._files, self.variable_config_dict, self._settings, parse_argv(self._argv))
        layers = [Layer(*split_by_model(source)) for source in sources]
        for layer in layers:
            check_prefixes(layer.per_model, [name])
        self.external_config_dict = layered(layers, name)

    # ---- what becomes of it

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        self.resolution = resolved = resolve(model, dataset, self.external_config_dict)
        self.external_config_dict = dict(resolved.user)
        if not isinstance(model, type):
            model = find_model(resolved.model, resolved.final.get("llm_recommender") if resolved.facts.is_llm else None)
        return resolved.model, model, resolved.dataset

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        self.internal_config_dict = dict(self.resolution.defaults)
        if self.is_llm:
            listed = {name for names in self.parameters.values() for name in names}
            overall = load_yaml(find_properties() / "overall.yaml")
            self.parameters["LLM"] = [key for key in overall if key not in listed]

    def _get_final_config_dict(self) -> dict[str, Any]:
        return {**copy.deepcopy(dict(self.resolution.final)), "MODEL_TYPE": self.model_class.type}

    def _set_default_parameters(self) -> None:
        data_path = self.final_config_dict["data_path"]
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = data_path
        if self.final_config_dict["valid_metric"] == LOSS:
            self.final_config_dict["valid_metric_bigger"] = False
        if "show_progress" not in self.external_config_dict and not _is_watched():
            self.final_config_dict["show_progress"] = False  # a bar that is no bar fills a file with its states

    def _init_device(self) -> None:
        final, environment = self.final_config_dict, os.environ
        if isinstance(final["gpu_id"], list | tuple):
            final["gpu_id"] = ",".join(map(str, final["gpu_id"]))
        is_launched = "LOCAL_RANK" in environment or any(name.startswith("ACCELERATE_") for name in environment)
        if final["use_gpu"] and not is_launched:
            super()._init_device()
            return
        # The launcher has already given each process its GPU: CUDA_VISIBLE_DEVICES stays as it is.
        rank = int(environment.get("LOCAL_RANK", 0))
        wanted = final["use_gpu"] and environment.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")
        if wanted:
            check_devices()
        final["gpu_id"] = str(final["gpu_id"])
        final["single_spec"], final["local_rank"] = True, 0
        final["device"] = torch.device("cuda", rank) if wanted and torch.cuda.is_available() else torch.device("cpu")
        if not launched().is_main:
            final["state"], final["show_progress"], final["log_wandb"] = "error", False, False


def _is_watched() -> bool:
    """Whether progress bars are drawn where somebody sees them: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _plain(value: object) -> Any:
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
