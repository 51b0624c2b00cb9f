"""Checks of RecBole's own models, alone and as the auxiliary recommender, from their source files."""

from __future__ import annotations

import math
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from recbole_llm.declare import Settings
from recbole_llm.errors import InputError
from recbole_llm.lazy import needs_package
from recbole_llm.registry import suggestion
from recbole_llm.settings.evaluation import is_number
from recbole_llm.settings.models import ModelFacts, recbole_models
from recbole_llm.settings.source import read_class
from recbole_llm.settings.stage_checks import check_readable

# Settings under which an auxiliary recommender would know other users, items or histories than the model that asks it.
DATA_KEYS = frozenset(
    "field_separator encoding bad_lines quoting USER_ID_FIELD ITEM_ID_FIELD TIME_FIELD rm_dup_inter val_interval "
    "filter_inter_by_user_or_item user_inter_num_interval item_inter_num_interval benchmark_filename eval_args "
    "data_path dataset sample_seed windows".split()
)
# Models that are trained in stages, each with a config of its own and from the weights of the one before. RecBole runs
# one stage per command, which leaves a model to evaluate that was never trained for that task; here a command goes on
# to the last stage.
TRAIN_STAGES = {"S3Rec": ("pretrain", "finetune")}
# RecBole's transforms of training batches, and the settings that each cannot do without; user_defined returns nothing.
TRANSFORMS = {
    "mask_itemseq": ("mask_ratio",),
    "inverse_itemseq": (),
    "crop_itemseq": ("eta",),
    "reorder_itemseq": ("beta",),
}


# ------------------------------------------------------------------------------------------- as a model of a command


def check_classic(model: str, facts: ModelFacts, settings: Settings) -> None:
    """Refuse one of RecBole's models that would fail in or after its training.

    Args:
        model: its name.
        facts: facts of its class.
        settings: settings of the run, resolved.

    Raises:
        InputError: it ranks nothing, its stage is unknown or has nothing to start from, or a package is missing.
    """
    if facts.type == "DECISIONTREE":
        raise no_catalogue(model)
    check_train_stage(model, settings)
    if settings["pre_model_path"] and model in TRAIN_STAGES:
        check_readable("pre_model_path", Path(_text("pre_model_path", settings)))
    if settings["log_wandb"] and find_spec("wandb") is None:
        raise needs_package("log_wandb", "wandb", "set log_wandb: False")
    if settings["transform"] is not None:
        _check_transform(model, settings)


def _check_transform(model: str, settings: Settings) -> None:
    """Refuse a transform of batches that RecBole does not have, or that lacks its setting.

    Raises:
        InputError: its name, or the setting.
    """
    name = _text("transform", settings)
    if name not in TRANSFORMS:
        hint = suggestion(name, TRANSFORMS, f"; choose from: {', '.join(TRANSFORMS)}")
        raise InputError("transform", f"there is no transform '{name}'{hint}", kind="unknown")
    for key in TRANSFORMS[name]:
        share = settings[key]
        if share is None:
            raise InputError(key, f"transform {name} needs it: a number between 0 and 1, such as 0.2", kind="missing")
        if not is_number(share) or not 0 <= share <= 1:
            raise InputError(key, f"{share!r} is not allowed; transform {name} takes a number between 0 and 1")
    if name == "mask_itemseq":
        _check_masks(model, settings)


def _text(key: str, settings: Settings) -> str:
    """A setting of RecBole's that has no declaration, and is text.

    Raises:
        InputError: it is something else.
    """
    value = settings[key]
    if not isinstance(value, str):
        raise InputError(key, f"{value!r} is not allowed; give text")
    return value


def _check_masks(model: str, settings: Settings) -> None:
    """Refuse masks for which RecBole reserves no place in a history, and then fails on tables of uneven rows.

    Raises:
        InputError: the share of the longest history is below one item.
    """
    share, longest = settings["mask_ratio"], settings["MAX_ITEM_LIST_LENGTH"]
    if share * longest < 1:
        raise InputError(
            "mask_ratio",
            f"{model} masks {share:g} of a history, and of MAX_ITEM_LIST_LENGTH {longest} that is no item; give at "
            f"least {math.ceil(100 / longest) / 100:g}",
            kind="conflict",
        )


def no_catalogue(model: str) -> InputError:
    """The refusal of a decision tree."""
    return InputError("model", f"{model} is a decision tree and ranks no catalogue; leave it out", kind="conflict")


def reads_graph(model: str, facts: ModelFacts) -> bool:
    """Whether a model's data set class, its own or that of its type, is one of knowledge graphs."""
    own = read_class(f"recbole.data.dataset.customized_dataset:{model}Dataset")
    names = [one.name for one in own.ancestry()] if own else []
    return "KnowledgeBasedDataset" in names if names else facts.type == "KNOWLEDGE"


def check_train_stage(model: str, settings: Settings) -> None:
    """Refuse a stage that the model does not have, or one that starts from a model that is not given.

    Raises:
        InputError: which.
    """
    names, first = TRAIN_STAGES.get(model), settings["train_stage"]
    if names is None:
        return
    if first not in names:
        message = f"{model} has no stage '{first}'; choose from: {', '.join(names)}"
        raise InputError("train_stage", message, kind="unknown")
    if first != names[0] and not settings["pre_model_path"]:
        raise InputError(
            "pre_model_path",
            f"{model}'s stage '{first}' starts from a saved model; set it to the .pth file, or leave train_stage out "
            "to train all stages in one command",
            kind="missing",
        )


# ---------------------------------------------------------------------------------------- as the auxiliary recommender


def check_own_data(model: str, recommender: str, settings: Collection[str]) -> None:
    """Refuse settings of the auxiliary recommender that are of the data, which are the run's.

    Args:
        model: name of the model that asks it.
        recommender: its name.
        settings: names of the settings in ``recommender_config``.

    Raises:
        InputError: the first of them.
    """
    if changed := sorted(DATA_KEYS & set(settings)):
        raise InputError(
            "recommender_config",
            f"'{changed[0]}' would give {recommender} other data than {model} has; set it for the run, outside "
            "recommender_config",
            kind="conflict",
        )


def check_recommender(settings: Settings, *, states: bool, vectors: bool, influence: bool) -> None:
    """Refuse an auxiliary recommender that cannot give what is asked of it, as far as its source file shows it.

    Args:
        settings: settings of the run, resolved.
        states: whether the state of a history is asked for, as by iLoRA's gates.
        vectors: whether item vectors are asked for, as by LLaRA.
        influence: whether the influence of training rows on its loss is asked for, as by DEALRec.

    Raises:
        InputError: what it cannot give, and which one can.
    """
    name = settings["recommender"]
    source = read_class(recbole_models()[name])
    if source is None:
        return
    if states and not is_of_a_sequence(source.method("forward")):
        raise no_state(name)
    if vectors and source.part("item_embedding") is None:
        raise no_vectors(name)
    if not influence:
        return
    if source.attribute("type") == "TRADITIONAL":
        raise no_weights(name)
    if settings["influence_weights"] != "all" and "Transformer" not in source.text():
        raise no_block(name, settings["influence_weights"])


def is_of_a_sequence(inputs: Collection[str] | None) -> bool:
    """Whether a model's forward, by the names of its inputs, asks for no more than a history of items."""
    return bool(inputs) and {"item_seq", "item_seq_len"}.issuperset(inputs or ())


def no_state(name: str) -> InputError:
    """The refusal of a recommender without states of histories."""
    message = f"{name} gives no state of a sequence alone; choose SASRec or GRU4Rec"
    return InputError("recommender", message, kind="conflict")


def no_vectors(name: str) -> InputError:
    """The refusal of a recommender without item vectors."""
    message = f"{name} has no item vectors; choose SASRec, GRU4Rec or Caser"
    return InputError("recommender", message, kind="conflict")


def no_weights(name: str) -> InputError:
    """The refusal of a recommender that only counts."""
    message = f"{name} learns no weights, so its loss has no gradient; choose SASRec"
    return InputError("recommender", message, kind="conflict")


def no_block(name: str, which: str) -> InputError:
    """The refusal of weights that a recommender does not have."""
    return InputError("influence_weights", f"{name} has no {which} block; set influence_weights: all", kind="conflict")
