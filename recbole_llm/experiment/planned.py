"""The runs of a command, planned and checked before the first one trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import NamedTuple

from recbole.utils import ModelType, dataset_arguments, init_seed

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import load_rows
from recbole_llm.evaluation import check_together, protocol_of
from recbole_llm.experiment.run import check_row_digests, is_teacher
from recbole_llm.experiment.student import student_config, student_label
from recbole_llm.experiment.timing import plan_of
from recbole_llm.experiment.trained import is_few_shot
from recbole_llm.hashing import hash_json
from recbole_llm.logs import silent
from recbole_llm.model.backbones import check_backbone
from recbole_llm.settings.command import Command, settings_for
from recbole_llm.settings.config import Config
from recbole_llm.settings.defaults import union_columns
from recbole_llm.timeline import RunPlan

# Beside those that RecBole lists as of the data set.
DATA_SETTINGS = (
    *("eval_args", "windows", "bad_lines", "quoting", "valid_sample_size", "test_sample_size", "sample_seed"),
    *("category_field", "title_field", "title_with"),
)


class Planned(NamedTuple):
    """A run that is to come.

    Attributes:
        config: its settings.
        label: the model's name in the table.
        few_shot: whether ``train_sample_size`` applies.
        beside: whether it shows, on few-shot rows, a model that is shown on all rows as well.
    """

    config: Config
    label: str
    few_shot: bool
    beside: bool = False


def make_configs(command: Command, seed: int | None = None) -> list[Config]:
    """The configs of a command's models, which load the same columns.

    Args:
        command: what to run.
        seed: in place of the setting ``seed``, if given.

    Raises:
        InputError: a wrong setting, or models that cannot share a table.
    """
    if seed is not None:
        command = replace(command, shared={**command.shared, "seed": seed})
    configs = [Config(model, command.dataset, settings=settings_for(model, command)) for model in command.models]
    check_together([protocol_of(config) for config in configs])
    columns = union_columns([config["load_col"] for config in configs])
    head_share = next((config["head_share"] for config in configs if config["head_share"]), None)
    for config in configs:
        config["load_col"], config["head_share"] = columns, head_share
    return configs


def plan(configs: Sequence[Config]) -> list[Planned]:
    """The runs of a command: every model once, RecBole's sequential ones also on the LLM's few-shot rows."""
    sizes = [config["train_sample_size"] for config in configs if config.is_llm]
    runs: list[Planned] = []
    for config in configs:
        runs.append(Planned(config, config["model"], is_few_shot(config)))
        if config.is_llm or config["sample_for"] == "llm":
            continue
        config["train_sample_size"] = config["train_sample_size"] or next(filter(None, sizes), None)
        learns_rows = config["MODEL_TYPE"] == ModelType.SEQUENTIAL or protocol_of(config).has_labels
        few_shot = learns_rows and config["train_sample_size"] is not None
        if few_shot and config["sample_for"] == "both":
            label = f"{config['model']} ({config['train_sample_size']} rows)"
            runs.append(Planned(config, label, few_shot=True, beside=True))
    return runs


def check_planned(planned: Sequence[Planned]) -> None:
    """Refuse, before the first run trains, what would show in a later one: settings, columns and files, other rows.

    Runs that read the same data in the same way stand for each other, and if all do, the first run is check enough.

    Raises:
        InputError: what is wrong.
    """
    for config in (one.config for one in planned if one.config.is_llm):
        config.model_class.check(config)
        check_backbone(config)
    different: dict[str, Planned] = {}
    for one in planned:
        before = different.setdefault(_data_facts(one.config), one)
        if one.config.is_llm and not before.config.is_llm:  # it asks for more: titles
            different[_data_facts(one.config)] = one
    digests: dict[str, str] = {}
    for config, label, few_shot, _ in different.values() if len(different) > 1 else ():
        with silent():  # each run will say it in its own log
            init_seed(config["seed"], config["reproducibility"])
            rows = load_rows(config, few_shot)
            if config.is_llm:
                texts = tuple(config["item_text_fields"] or ())
                ItemCatalog.from_dataset(rows.whole, config["title_field"], config["title_with"], texts)
        protocol_of(config).check(rows)
        digests[label] = rows.evaluated()
        first = next(iter(digests))
        check_row_digests(label, digests[label], first, digests[first])


def _data_facts(config: Config) -> str:
    """What decides how a run reads its data; a setting that is forgotten here is checked when the run begins."""
    names = {*dataset_arguments, *DATA_SETTINGS}
    facts = {name: value for name, value in config.to_dict().items() if name in names}
    own_class = hasattr(import_module("recbole.data.dataset"), f"{config['model']}Dataset")
    return hash_json([facts, str(config["MODEL_TYPE"]), config["model"] if own_class else ""])


def run_plans(by_seed: Sequence[Sequence[Planned]]) -> list[RunPlan]:
    """What the runs of a command consist of, those of the students that they teach included."""
    plans: list[RunPlan] = []
    for one in (one for planned in by_seed for one in planned):
        plans.append(plan_of(one.config, one.label, one.few_shot))
        if is_teacher(one.config):
            student = student_config(one.config)
            plans.append(plan_of(student, student_label(student, one.label), few_shot=False))
    return plans
