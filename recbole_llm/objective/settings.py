"""The setting of the axis ``objective``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting

NLL = "nll"  # the value that adds nothing: mean loss per token of the answers


@dataclass(frozen=True)
class ObjectiveSettings(Declared):
    """The axis ``objective``; its values have settings of their own."""

    objective: Annotated[
        str,
        Setting(
            "loss of an answer in fine-tuning",
            choices={
                "nll": "mean over its tokens",
                "msl": "among tokens that continue a title",
                "bear": "msl, weighted by the threshold of a beam search",
                "cft": "plus the effect of the history",
            },
            axis="objective",
        ),
    ] = NLL
