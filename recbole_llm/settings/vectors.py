"""Checks of models whose LLM computes vectors and answers no prompts: LLMEmb and Laser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.settings.defaults import read_properties
from recbole_llm.settings.models import facts_by_name
from recbole_llm.settings.stage_checks import reads_states
from recbole_llm.settings.task_checks import LOSS
from recbole_llm.settings.training import READERS, AlignmentSettings

WIDTHS: Mapping[str, str] = dict(zip(READERS, ("hidden_size", "embedding_size", "hidden_size"), strict=True))
"""The setting of each model that reads vectors which says how wide its item embeddings are."""
# Keys that the run's own training hands to the sequential model.
TRAINING = (
    *("epochs", "train_batch_size", "learner", "learning_rate", "weight_decay", "eval_step", "stopping_step"),
    *("valid_metric", "clip_grad_norm"),
)


def check_vectors(model: str, dataset: str, final: Mapping[str, Any], adapter: type | None) -> None:
    """Refuse settings of an LLM that answers prompts, or of sequential models that do not fit each other.

    Args:
        model: its name.
        dataset: name of the data set.
        final: settings of the run, resolved.
        adapter: the class of the adapter.

    Raises:
        InputError: which.
    """
    _check_no_answers(model, final, "reads items and answers no prompts")
    if reads_states(adapter, final):
        raise InputError(
            "adapter", f"{final['adapter']} reads a user's history, and {model} tunes on items; give lora or full",
            kind="conflict",
        )  # fmt: skip
    _check_training(model, final)
    _check_backbones(model, dataset, final)


def check_bi_tuning(model: str, final: Mapping[str, Any]) -> None:
    """Refuse settings of an LLM that answers prompts or learns, or of a recommender without states of items (Laser).

    Args:
        model: its name.
        final: settings of the run, resolved.

    Raises:
        InputError: which.
    """
    LaserSettings.from_settings(final)
    _check_no_answers(model, final, "makes vectors and answers no prompts")
    if final["adapter"] != "lora":
        raise InputError("adapter", f"{model}'s LLM is frozen; leave adapter out", kind="conflict")
    if final["train_unit"] == "user":
        raise InputError(
            "train_unit", f"{model} puts vectors of its own before every row's prompt; set train_unit: row",
            kind="conflict",
        )  # fmt: skip
    if final["recommender"] not in WIDTHS:
        raise InputError(
            "recommender",
            f"{model} reads states of single items, which {', '.join(WIDTHS)} give, not {final['recommender']}; "
            "choose one",
            kind="conflict",
        )
    _check_training(model, final)


def _check_no_answers(model: str, final: Mapping[str, Any], instead: str) -> None:
    """Axes of answers, and of rows chosen by them, are left as they are."""
    unused = {"coreset": "none", "curriculum": "none", "reweight": "none", "grounding": "embedding", "objective": "nll"}
    unused |= {"preference": "none", "history_policy": "fixed"}
    for key, nothing in unused.items():
        if final[key] != nothing:
            raise InputError(key, f"{model}'s LLM {instead}; leave {key} out", kind="conflict")
    if final["candidates"]:
        raise InputError(
            "candidates", f"{model}'s LLM answers no prompts that could list some; leave it out", kind="conflict"
        )


def _check_training(model: str, final: Mapping[str, Any]) -> None:
    """The epoch is chosen by rankings, and there is one."""
    if final["valid_metric"] == LOSS:
        raise InputError("valid_metric", f"{model} has no answers to take the loss of; give NDCG@10", kind="conflict")
    if not final["epochs"]:
        raise InputError("epochs", f"{model} cannot rank without training; give at least 1", kind="conflict")


def _check_backbones(model: str, dataset: str, final: Mapping[str, Any]) -> None:
    """The model that reads vectors, and the one that it is aligned with."""
    rat = AlignmentSettings.from_settings(final)
    if rat.backbone == "BERT4Rec" and rat.loss == "bce":
        raise InputError("rat_loss", "BERT4Rec has no loss against single items; give ce", kind="conflict")
    if not rat.alpha:
        return
    if final["recommender"] not in WIDTHS:
        raise InputError(
            "recommender",
            f"{model} is aligned with item embeddings of {', '.join(WIDTHS)}, not of {final['recommender']}; "
            "choose one",
            kind="conflict",
        )
    own = width_of(rat.backbone, dataset, rat.config)
    other = width_of(final["recommender"], dataset, final["recommender_config"])
    if own != other:
        raise InputError(
            "rat_config",
            f"{rat.backbone}'s item embeddings are {own} wide and those of the recommender, {final['recommender']}, "
            f"{other}; give both the same {WIDTHS[rat.backbone]}, or rat_alpha: 0",
            kind="conflict",
        )


def width_of(model: str, dataset: str, given: Mapping[str, Any] | None) -> int:
    """Entries of an item embedding of one of RecBole's models."""
    key = WIDTHS[model]
    return int((given or {}).get(key) or read_properties(model, facts_by_name(model), dataset)[key])
