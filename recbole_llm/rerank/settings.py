"""Settings of re-ranking: method, features, distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError


@dataclass(frozen=True)
class RerankSettings(Declared):
    """The axis ``rerank`` and what belongs to it."""

    rerank: Annotated[
        str,
        Setting(
            "how the best items of each list are re-ordered",
            choices={
                "none": "not at all",
                "mmr": "by relevance minus similarity to the list so far",
                "lmdh": "by relevance and dispersion, with weights learned from training histories",
            },
            axis="rerank",
        ),
    ] = "none"
    rerank_topn: Annotated[int, Setting("number of best items of a row that are re-ordered", low=2, high=65_536)] = 100
    rerank_lambda: Annotated[
        float | list[float],
        Setting(
            "weight of relevance against diversity",
            low=0,
            high=1,
            note="1 is relevance only; with lmdh, 0.5 keeps the learned weights; of a list, the best on validation",
        ),
    ] = 0.5
    rerank_min_distance: Annotated[
        float | None,
        Setting(
            "smallest mean distance within the validation lists that the chosen rerank_lambda must reach",
            low=0,
            null="sets no limit",
        ),
    ] = None
    rerank_features: Annotated[
        str,
        Setting(
            "what items are compared by",
            choices={
                "auto": "the first of the following that exists",
                "categories": "category_field",
                "llm": "the LLM's embeddings of titles",
                "id": "the model's item vectors, or those of the training interactions",
            },
        ),
    ] = "auto"
    rerank_distance: Annotated[
        str,
        Setting(
            "distance of two items",
            choices={
                "cosine": "1 less the cosine",
                "euclid": "half the Euclidean distance of unit vectors, a metric",
                "jaccard": "1 less shared categories over all categories of the two",
            },
        ),
    ] = "cosine"
    rerank_rows: Annotated[
        int, Setting("training histories that weights are learned from, drawn by seed", low=1, scope="lmdh")
    ] = 1024
    rerank_window: Annotated[
        int,
        Setting(
            "newest items of a history to which the next item's distances are summed", low=1, high=65_536, scope="lmdh"
        ),
    ] = 5
    rerank_negatives: Annotated[
        int,
        Setting(
            "items outside the history drawn for each next item, with feedback 0", low=1, high=65_536, scope="lmdh"
        ),
    ] = 4
    rerank_ridge: Annotated[float, Setting("penalty of the weights", above=0, scope="lmdh")] = 1.0
    half_relevance: Annotated[
        bool,
        Setting("choose by half of the relevance, for which greedy lists have a guarantee", scope="lmdh"),
    ] = False
    clip_beta: Annotated[
        bool, Setting("set a negative weight of dispersion, which favours similar items, to 0", scope="lmdh")
    ] = False

    @property
    def trade_offs(self) -> list[float]:
        """The values of ``rerank_lambda``."""
        given = self.rerank_lambda
        return [float(one) for one in given] if isinstance(given, list | tuple) else [float(given)]


@dataclass(frozen=True)
class LMDHSettings(Declared):
    """The model LMDH; ``half_relevance`` and ``clip_beta`` are read as by ``rerank: lmdh``."""

    prefix = "lmdh_"
    also_reads: ClassVar[tuple[str, ...]] = ("half_relevance", "clip_beta")

    width: Annotated[
        int,
        Setting("width of the item vectors, singular vectors of the user-item matrix", low=1, high=65_536),
    ] = 16
    window: Annotated[int, Setting("newest items of a history to which distances are summed", low=1, high=65_536)] = 5
    negatives: Annotated[int, Setting("items outside the history per row, with feedback 0", low=1, high=65_536)] = 4
    prior_ridge: Annotated[float, Setting("penalty of the weights of all users", above=0)] = 1.0
    ridge: Annotated[float, Setting("penalty of a user's deviation from these weights", above=0)] = 10.0
    topn: Annotated[int, Setting("best items by relevance that lists are chosen from", low=2, high=65_536)] = 100


def check_rerank(model: str, task: str, is_llm: bool, final: Mapping[str, Any], has_valid_rows: bool) -> None:
    """Refuse settings that leave nothing to put in another order, or nothing to compare items by.

    Args:
        model: name of the model.
        task: ``"next-item"`` or ``"click"``.
        is_llm: whether the model is LLM-based.
        final: resolved settings.
        has_valid_rows: whether the split has validation rows.

    Raises:
        InputError: the setting, and what to do about it.
    """
    settings = RerankSettings.from_settings(final)
    if settings.rerank == "none":
        return
    name = settings.rerank
    if task == "click" or final["candidates"]:
        why = f"{model} predicts clicks" if task == "click" else "with candidates nothing is ranked"
        raise InputError("rerank", f"{name} re-orders ranked items, and {why}; leave rerank out", kind="conflict")
    if is_llm and final["reweight"] != "none":
        raise InputError(
            "rerank",
            f"{name} needs one ranking, and reweight={final['reweight']} has one for each metric; leave one out",
            kind="conflict",
        )
    metrics = final["metrics"] if isinstance(final["metrics"], list | tuple) else [final["metrics"]]
    if "gauc" in (metric.lower() for metric in metrics):
        raise InputError(
            "metrics", f"GAUC reads all scores, and rerank={name} changes an order only; leave it out", kind="conflict"
        )
    longest = max(final["topk"]) if isinstance(final["topk"], list | tuple) else final["topk"]
    if settings.rerank_topn < longest:
        raise InputError(
            "rerank_topn",
            f"{settings.rerank_topn} is less than topk, {longest}; give {longest} or more",
            kind="conflict",
        )
    _check_features(model, is_llm, settings, final["category_field"])
    chooses = len(settings.trade_offs) > 1
    if chooses and not has_valid_rows:
        raise InputError(
            "rerank_lambda",
            "a list is chosen from by validation rows, and the split has none; give one value",
            kind="conflict",
        )
    if settings.rerank_min_distance is not None and not chooses:
        raise InputError(
            "rerank_min_distance",
            "it chooses among several values of rerank_lambda; give a list, such as [0.25, 0.5, 0.75, 1]",
            kind="conflict",
        )


def _check_features(model: str, is_llm: bool, settings: RerankSettings, category_field: str | None) -> None:
    wanted = settings.rerank_features
    if wanted == "categories" and not category_field:
        raise InputError("category_field", "rerank_features=categories needs it; name an item field", kind="missing")
    if wanted == "llm" and not is_llm:
        raise InputError(
            "rerank_features", f"{model} has no LLM; give categories or id, or leave it out", kind="conflict"
        )
    by_categories = wanted == "categories" or (wanted == "auto" and category_field)
    if settings.rerank_distance == "jaccard" and not by_categories:
        raise InputError(
            "rerank_distance",
            "jaccard compares categories; set category_field and rerank_features=categories, or give cosine or euclid",
            kind="conflict",
        )
