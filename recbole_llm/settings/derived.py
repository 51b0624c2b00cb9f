"""Settings derived from others where the user leaves them open: columns, modes, negative samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from recbole_llm.errors import InputError
from recbole_llm.settings.defaults import union_columns
from recbole_llm.settings.models import ModelFacts

# RecBole's own of what a user's train_neg_sample_args leave out.
NEGATIVES = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}


def both_modes(mode: object) -> dict[str, Any]:
    """The evaluation mode of validation and of test; one that is given serves both."""
    if not isinstance(mode, Mapping):
        return {"valid": mode, "test": mode}
    default = mode.get("valid", mode.get("test", "full"))
    return {"valid": mode.get("valid", default), "test": mode.get("test", default)}


def columns_to_load(facts: ModelFacts, task: str, final: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns to load: the property files', and those that the settings name."""
    inter = [final[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
    if task == "click":  # what says whether it was a click, if there is such a column
        inter += [final["LABEL_FIELD"], *(final["threshold"] or ())]
    named = {"inter": [column for column in inter if column]}
    item = [final["category_field"]]
    if facts.is_llm or final["candidates"] or final.get("semantic_source") == "kmeans_llm":
        item += [final["title_field"], final["title_with"]]
    if facts.is_llm:
        item += final["item_text_fields"] or ()
    if any(item):
        named["item"] = [final["ITEM_ID_FIELD"], *(column for column in item if column)]
    if facts.names_codes == "twin" and final["user_text_fields"]:
        named["user"] = [final["USER_ID_FIELD"], *final["user_text_fields"]]
    # RecBole does not take both lists of one file: what a user leaves out is left out of everything.
    everything = dict.fromkeys(final["unload_col"] or (), "*")
    return union_columns([final["load_col"], named, everything])


def negative_samples(model: str, facts: ModelFacts, task: str, final: Mapping[str, Any], given: object) -> Any:
    """Negative samples for training: none where the loss is over the whole catalogue or the text."""
    if isinstance(given, Mapping) and given.get("distribution") == "none":  # what RecBole resolves None to
        given = None
    if facts.type == "TRADITIONAL":  # they learn by counting: Pop would count negatives as well
        return None
    if task == "click":
        if given is not None:
            raise InputError(
                "train_neg_sample_args",
                f"{model} learns from labels, which RecBole's negative samples would replace; leave it out",
                kind="conflict",
            )
        return None
    by_loss = not facts.has_input_type and final.get("loss_type") == "CE"
    if not facts.is_llm and not (by_loss and facts.type == "SEQUENTIAL"):
        return _checked_negatives(final.get("train_neg_sample_args"))
    if given is not None:
        raise InputError(
            "train_neg_sample_args",
            f"{model} trains without negative samples; leave it out, or set it for another model alone "
            "(--BPR.train_neg_sample_args=...)",
            kind="conflict",
        )
    return None


def _checked_negatives(negatives: object) -> Any:
    distribution = negatives.get("distribution", "uniform") if isinstance(negatives, Mapping) else None
    if distribution not in (None, "None", "none", "uniform", "popularity"):
        raise InputError(
            "train_neg_sample_args", f"distribution: {distribution!r} is not allowed; give one of uniform, popularity"
        )
    return None if distribution in (None, "None", "none") else {**NEGATIVES, **cast(Mapping[str, Any], negatives)}
