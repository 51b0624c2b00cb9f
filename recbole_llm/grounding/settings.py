"""Settings of grounding: how answers become scores of items, and how distances are re-weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting


@dataclass(frozen=True)
class GroundingSettings(Declared):
    """The axis ``grounding`` and what belongs to it."""

    grounding: Annotated[
        str,
        Setting(
            "how answers become scores",
            choices={
                "embedding": "distance of the answer",
                "interleaved": "distances of all beams' answers, in turn",
                "constrained": "beams of titles",
                "likelihood": "of every title",
            },
            axis="grounding",
        ),
    ] = "embedding"
    title_length_penalty: Annotated[
        float,
        Setting(
            "a title's log-probability is divided by its length to this power",
            low=-100,
            high=100,
            scope="constrained, likelihood",
        ),
    ] = 0.0
    title_renormalize: Annotated[
        bool,
        Setting("probabilities among the tokens that continue a title only", scope="constrained, likelihood"),
    ] = False
    lm_weight: Annotated[
        float,
        Setting(
            "share of the LLM",
            low=0,
            high=1,
            note="the rest is the recommender's",
            scope="constrained, likelihood",
        ),
    ] = 1.0
    faiss_index: Annotated[
        str,
        Setting("factory string of the FAISS index", note="Flat is exact, IVF and HNSW are approximate"),
    ] = "Flat"
    faiss_search: Annotated[
        str | None,
        Setting(
            "search parameters of an approximate index", note="such as nprobe=16 or efSearch=64", null="FAISS's own"
        ),
    ] = None


@dataclass(frozen=True)
class ReweightSettings(Declared):
    """Weights of distances, by popularity or by a recommender."""

    reweight: Annotated[
        str,
        Setting("what re-weights distances", choices=("none", "popularity", "collaborative")),
    ] = "none"
    gamma: Annotated[
        float | None,
        Setting(
            "strength of the re-weighting",
            low=0,
            null="searches it on validation, per metric and cut-off",
            scope="popularity, collaborative",
        ),
    ] = None
