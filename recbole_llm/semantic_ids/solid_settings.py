"""Settings of SOLID: the source of semantic classes, and the heads generated from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError
from recbole_llm.lazy import needs_package


@dataclass(frozen=True)
class SolidSettings(Declared):
    """The model SOLID (arXiv 2408.00123)."""

    solid_backbone: Annotated[
        str, Setting("RecBole model whose state the head is applied to", choices=("SASRec", "GRU4Rec", "BERT4Rec"))
    ] = "SASRec"
    semantic_source: Annotated[
        str,
        Setting(
            "where an item's semantic class comes from",
            choices={
                "field": "category_field",
                "kmeans_llm": "k-means of an LLM's item vectors, of semantic_encoder",
                "kmeans_id": "k-means of vectors of the training interactions",
            },
        ),
    ] = "kmeans_id"
    semantic_encoder: Annotated[
        str,
        Setting(
            "text encoder of kmeans_llm: minilm, a folder, or a name on the Hugging Face hub; or the folder of a run "
            "of LLMEmb, whose item vectors are taken",
            note="the extra text-encoders reads an encoder",
        ),
    ] = "minilm"
    n_semantic: Annotated[
        int | None,
        Setting("largest number of classes", low=2, high=65_536, null="takes one for every 20 items, 256 at most"),
    ] = None
    semantic_epochs: Annotated[
        int,
        Setting("epochs of the model on classes only, whose class vectors are the codebook", low=1),
    ] = 20
    hyper_clip: Annotated[
        float,
        Setting(
            "largest entry of the weights that the items' branch adds", low=0, note="0 leaves the items' branch out"
        ),
    ] = 0.01
    codebook_weight: Annotated[
        float, Setting("weight of the distance between class vectors and the codewords of items", low=0)
    ] = 0.1
    head_layers: Annotated[int, Setting("generated layers, the last one linear", low=1, high=64)] = 2
    straight_through: Annotated[
        bool, Setting("pass the gradient of a codeword on to the item vector that was quantised to it")
    ] = True
    codebook_trainable: Annotated[bool, Setting("train the codebook by its distance to the class vectors")] = False


def check_solid(final: Mapping[str, Any]) -> None:
    """Refuse a source of classes that the run lacks, or whose package is not installed.

    Args:
        final: resolved settings.

    Raises:
        InputError: which.
    """
    settings = SolidSettings.from_settings(final)
    if settings.semantic_source == "field" and not final["category_field"]:
        raise InputError("category_field", "semantic_source=field needs it; name an item field", kind="missing")
    if settings.semantic_source != "field" and find_spec("faiss") is None:
        raise needs_package("semantic_source", "faiss-cpu", "set semantic_source: field")
    if final["hidden_size"] != final["embedding_size"]:
        raise InputError(
            "embedding_size",
            f"it is {final['embedding_size']} and hidden_size {final['hidden_size']}; SOLID has one width: set both "
            "alike",
            kind="conflict",
        )
    if final["loss_type"] != "CE":
        raise InputError("loss_type", f"SOLID has CE, not {final['loss_type']}; leave it out", kind="conflict")
