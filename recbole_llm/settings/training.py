"""Settings of a model and its fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from recbole_llm.declare import Declared, Setting, Settings
from recbole_llm.llm.settings import AUTO

READERS = ("SASRec", "GRU4Rec", "BERT4Rec")  # RecBole's models that can read vectors in place of item embeddings
STUDENTS = ("SASRec", "GRU4Rec", "NARM")  # RecBole's models that can learn an LLM's rankings
MAX_NORM = "max_norm"  # the one key of clip_grad_norm that is read; RecBole's models take torch's other ones too


def _is_clip(value: Mapping[str, Any]) -> bool:
    """Whether this is a norm to clip at."""
    if not value:
        return True
    limit = value.get(MAX_NORM)
    if list(value) != [MAX_NORM] or isinstance(limit, bool) or not isinstance(limit, int | float):
        return False
    return 0 < limit < math.inf


def is_tuned(settings: Settings) -> bool:
    """Whether a run changes the weights of its LLM: it is fine-tuned, or learns a preference without that.

    Args:
        settings: resolved settings of an LLM model.

    Example:
        >>> is_tuned({"epochs": 0, "preference": "dpo"}), is_tuned({"epochs": 0, "preference": "none"})
        (True, False)
    """
    return bool(settings["epochs"]) or settings["preference"] != "none"


@dataclass(frozen=True)
class ModelSettings(Declared):
    """What a model is built of."""

    llm_recommender: Annotated[str | None, Setting("class that a preset builds", null="outside presets")] = None
    recommender: Annotated[
        str, Setting("auxiliary recommender, a RecBole model, trained where another key needs it")
    ] = "SASRec"
    recommender_config: Annotated[
        dict[str, Any] | None, Setting("settings of the auxiliary recommender, under RecBole's names", null="is none")
    ] = field(default_factory=dict)
    auxiliary_rows: Annotated[
        str,
        Setting(
            "training rows of the auxiliary recommender",
            choices={"all": "every one", "few": "the LLM's few-shot rows, train_sample_size of them"},
        ),
    ] = "all"


@dataclass(frozen=True)
class FineTuneSettings(Declared):
    """What decides the result of fine-tuning; and what does not: :attr:`NO_EFFECT`."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset(("micro_batch_tokens", "checkpoint_minutes"))
    """Fields that decide memory, and how much a killed run loses."""

    epochs: Annotated[int, Setting("largest number of epochs", low=0, note="0 ranks with the untuned LLM")] = 7
    train_batch_size: Annotated[int, Setting("rows per optimiser step", low=1, note="decides the result")] = 128
    micro_batch_tokens: Annotated[
        int | str,
        Setting(
            "tokens per forward pass, padding included",
            low=1,
            pattern=AUTO,
            like="an integer >= 1, or auto",
            note="auto goes by free memory, on a CPU 4096 at most; decides memory, not the result",
        ),
    ] = AUTO
    group_by_length: Annotated[
        bool, Setting("put rows of similar length into a step: less padding, different steps")
    ] = False
    learner: Annotated[
        str,
        Setting("optimiser", choices=("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")),
    ] = "adamw"
    learning_rate: Annotated[float, Setting("largest learning rate", above=0)] = 1e-4
    weight_decay: Annotated[float, Setting("weight decay", low=0)] = 0.0
    warmup_steps: Annotated[
        int | float,
        Setting("optimiser steps over which the learning rate rises", share=True, low=0),
    ] = 20
    lr_scheduler: Annotated[
        str,
        Setting(
            "learning rate after warm-up",
            choices={"linear": "falls", "constant": "", "cosine": "falls", "cosine_unshifted": "LLaRA's"},
        ),
    ] = "linear"
    lr_floor: Annotated[
        float,
        Setting("learning rate at the start and the end, as a share of the largest", low=0, below=1),
    ] = 0.0
    clip_grad_norm: Annotated[
        dict[str, Any] | None,
        Setting(
            "largest norm of the gradient",
            accept=_is_clip,
            like="{'max_norm': <a number > 0>}",
            null="does not clip",
        ),
    ] = field(default_factory=lambda: {MAX_NORM: 1.0})
    enable_amp: Annotated[bool, Setting("compute in bfloat16 with weights in float32 (autocast)")] = False
    checkpoint_minutes: Annotated[
        float | None,
        Setting(
            "minutes between saved states inside an epoch",
            low=0,
            note="0 keeps one after every step",
            null="keeps one only after every epoch",
        ),
    ] = 5.0
    eval_step: Annotated[int, Setting("epochs between validations", low=0, note="0 never validates")] = 1
    stopping_step: Annotated[
        int,
        Setting(
            "validations without improvement before training stops",
            low=0,
            note="0 never stops (RecBole's models: at the first)",
        ),
    ] = 2

    @property
    def max_grad_norm(self) -> float | None:
        """Norm that the gradient is clipped at, or None."""
        return (self.clip_grad_norm or {}).get(MAX_NORM)

    def facts(self) -> dict[str, Any]:
        """The settings that decide the result."""
        return {name: value for name, value in asdict(self).items() if name not in self.NO_EFFECT}

    def steps(self, n_rows: int) -> int:
        """Optimiser steps of a training on so many rows that runs through all its epochs."""
        return math.ceil(n_rows / self.train_batch_size) * self.epochs

    def warmup(self, steps: int) -> int:
        """Optimiser steps of warm-up in a training of so many; a decimal ``warmup_steps`` is a share of them."""
        share = self.warmup_steps
        return share if isinstance(share, int) else math.floor(share * steps + 1e-9)  # 0.29 * 100 is a little less


@dataclass(frozen=True)
class AlignmentSettings(Declared):
    """Training of the sequential model on the vectors (RAT)."""

    backbone: Annotated[str, Setting("RecBole model that uses the vectors", choices=READERS)] = "SASRec"
    config: Annotated[
        dict[str, Any] | None, Setting("settings of that model, under RecBole's names", null="is none")
    ] = field(default_factory=dict)
    loss: Annotated[
        str,
        Setting(
            "loss of the next item",
            choices={"ce": "over all items, as RecBole's models have it", "bce": "against one negative, the authors'"},
        ),
    ] = "ce"
    alpha: Annotated[
        float,
        Setting("weight of the alignment with the recommender's own item embeddings", low=0, note="0 trains none"),
    ] = 0.01
    tau: Annotated[float, Setting("temperature of the alignment", above=0)] = 2.0
    align_items: Annotated[int, Setting("most distinct items of a batch that are aligned", low=2)] = 2048
    freeze: Annotated[bool, Setting("keep the vectors frozen; False trains them")] = True

    prefix: ClassVar[str] = "rat_"


@dataclass(frozen=True)
class TeachingSettings(Declared):
    """A classic model that learns the rankings of a run's LLM (ranking distillation, arXiv 1809.07428)."""

    into: Annotated[
        str | None,
        Setting(
            "RecBole model that is trained on the LLM's rankings after the run", choices=STUDENTS, null="trains none"
        ),
    ] = None
    config: Annotated[
        dict[str, Any] | None, Setting("settings of that model, under RecBole's names", null="is none")
    ] = field(default_factory=dict)
    rows: Annotated[
        int | float | None,
        Setting("training rows, drawn by seed, for which the LLM ranks items", share=True, null="takes all"),
    ] = None
    topk: Annotated[int, Setting("items of each list", low=1, high=65_536)] = 20
    weight: Annotated[float, Setting("weight of the lists against the true items", low=0, high=1)] = 0.5
    decay: Annotated[
        float, Setting("number of ranks over which an item's weight in a list falls to 1 / e", above=0)
    ] = 10.0

    prefix: ClassVar[str] = "distill_"
