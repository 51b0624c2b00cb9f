"""Settings shared by coresets: number and unit of rows, influence and effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting

SAME = "same"  # the LLM's scores are of the run's objective


@dataclass(frozen=True)
class CoresetSettings(Declared):
    """The axis ``coreset``, and how much is chosen from what."""

    coreset: Annotated[str, Setting("how training rows are selected", choices={"none": "all"}, axis="coreset")] = "none"
    coreset_size: Annotated[int | float, Setting("rows or users to select", share=True)] = 1.0
    coreset_unit: Annotated[
        str,
        Setting("what is counted", choices={"row": "", "user": "a user is represented by the last training row"}),
    ] = "row"
    coreset_pool: Annotated[
        int | float | None,
        Setting("rows, drawn by seed, that are considered", share=True, null="considers all"),
    ] = None
    coreset_file: Annotated[
        str | None,
        Setting("file of an earlier selection, coreset.csv of the same rows", null="selects anew", apart=True),
    ] = None
    coreset_vectors: Annotated[
        str,
        Setting(
            "what gives a row's vector",
            choices={
                "recommender": "its state of the history",
                "llm": "its vector of the history's titles",
                "llmemb": "the mean of the history's item vectors (scft_*)",
            },
            scope="k_center, herding, d2_pruning, moderate, fdmat, qdit",
        ),
    ] = "recommender"
    coreset_objective: Annotated[
        str,
        Setting(
            "loss that the LLM scores rows by",
            choices={"nll": "selections of all objectives compare", SAME: "the run's objective"},
            scope="dealrec, goracs, qdit",
        ),
    ] = "nll"
    coreset_encoder: Annotated[
        str,
        Setting(
            "what embeds a row's text: llm (the run's own, untuned), or name or folder of a text encoder",
            scope="goracs",
            note="minilm is all-MiniLM-L6-v2 from a package",
        ),
    ] = "llm"


@dataclass(frozen=True)
class InfluenceSettings(Declared):
    """Influence of rows on the recommender's loss (DEALRec, arXiv 2401.17197)."""

    influence_method: Annotated[
        str,
        Setting("solver of the inverse Hessian", choices=("cg", "lissa", "exact"), scope="dealrec"),
    ] = "cg"
    damping_ratio: Annotated[
        float,
        Setting("damping as a share of the Hessian's largest eigenvalue", low=0, scope="dealrec"),
    ] = 0.1
    influence_damping: Annotated[
        float | None,
        Setting("the damping itself, in the Hessian's units", low=0, null="takes damping_ratio", scope="dealrec"),
    ] = None
    influence_scale: Annotated[
        float | None,
        Setting(
            "what the Hessian is divided by",
            above=0,
            null="is its largest eigenvalue plus damping",
            scope="dealrec, lissa",
        ),
    ] = None
    influence_steps: Annotated[
        int | None,
        Setting(
            "most steps of cg and lissa",
            low=1,
            null="is 1,000 for cg, and what lissa needs, at most 5,000",
            scope="dealrec",
        ),
    ] = None
    influence_step_rows: Annotated[
        int | None,
        Setting(
            "rows (or users) drawn for each step's Hessian",
            low=1,
            high=1_000_000,
            null="takes all",
            scope="dealrec, lissa",
        ),
    ] = None
    influence_target: Annotated[
        str,
        Setting(
            "rows whose mean loss influence refers to", choices={"train": "the paper", "valid": ""}, scope="dealrec"
        ),
    ] = "train"
    influence_weights: Annotated[
        str,
        Setting(
            "weights of the recommender",
            choices={"attention": "its last output map", "ffn": "", "all": ""},
            scope="dealrec",
        ),
    ] = "attention"


@dataclass(frozen=True)
class EffortSettings(Declared):
    """Norms of the gradient of the LLM's loss."""

    effort_weights: Annotated[
        str,
        Setting(
            "adapter weights whose gradient is measured",
            choices={"all": "", "last": "layer", "reference": "the papers' code"},
            scope="dealrec, goracs, grand",
            note="grand only where clicks are predicted",
        ),
    ] = "all"
    effort_tokens: Annotated[
        str,
        Setting(
            "tokens of the LLM's loss",
            choices={"answer": "", "all": "prompt as well, the papers' code"},
            scope="dealrec, goracs, qdit",
        ),
    ] = "answer"
