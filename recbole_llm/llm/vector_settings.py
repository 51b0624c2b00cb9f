"""Settings of item vectors by a contrastively tuned LLM (LLMEmb, arXiv 2409.19925)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from recbole_llm.declare import Declared, Setting

CLIP_SOFT, INFONCE = "clip_soft", "infonce"


@dataclass(frozen=True)
class ItemVectorSettings(Declared):
    """Contrastive tuning on two views of each item (SCFT), and the processing of the tuned LLM's vectors.

    The defaults are those of the authors' code.
    """

    steps: Annotated[
        int, Setting("optimiser steps of the contrastive tuning", low=0, note="0 takes the untuned LLM's vectors")
    ] = 4000
    batch: Annotated[int, Setting("items per step, each against all others", low=2, high=65_536)] = 64
    learning_rate: Annotated[float, Setting("largest learning rate, falls linearly (AdamW)", above=0)] = 2e-4
    dropout_ratio: Annotated[
        float, Setting("share of an item's attributes that a view leaves out", low=0, high=1, note="at least one stays")
    ] = 0.4
    loss: Annotated[
        str,
        Setting("contrastive loss", choices={CLIP_SOFT: "soft targets, the authors'", INFONCE: "of cosines"}),
    ] = CLIP_SOFT
    tau: Annotated[float, Setting("initial value of the learned temperature", above=0)] = 3.0
    detach_targets: Annotated[bool, Setting("no gradient through the targets of clip_soft")] = False
    pooling: Annotated[
        str,
        Setting("which hidden states of a text give its vector", choices={"mean": "over all tokens", "last": "token"}),
    ] = "mean"
    field_max_chars: Annotated[
        int, Setting("most characters of an attribute", low=1, key="field_max_chars", scope="item vectors")
    ] = 100
    max_tokens: Annotated[int, Setting("most tokens of an item's text, EOS included", low=2, high=1_048_576)] = 1024
    pca_dim: Annotated[
        int,
        Setting(
            "entries of an item vector after PCA, at most those of a state and the number of items",
            low=1,
            high=65_536,
            key="pca_dim",
            scope="item vectors",
        ),
    ] = 1536

    prefix: ClassVar[str] = "scft_"
