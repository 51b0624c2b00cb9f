"""Settings of self-distillation: which answers are distilled, and how fast they lose weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from recbole_llm.declare import Declared, Setting


@dataclass(frozen=True)
class DistillationSettings(Declared):
    """The axis ``curriculum`` and what belongs to it (SOFT, arXiv 2505.20771)."""

    curriculum: Annotated[
        str,
        Setting(
            "targets: none (the true title), sd_only, adaptive or fixed:<weight in [0, 1]> (self-distilled)",
            axis="curriculum",
            pattern=r"none|sd_only|adaptive|fixed:(0|1|[01]?\.\d+)",
            like="text like none, sd_only, adaptive or fixed:0.5",
        ),
    ] = "none"
    curriculum_epochs: Annotated[
        int | None,
        Setting("largest number of epochs of the curriculum", low=1, null="as many as epochs"),
    ] = None
    alpha: Annotated[
        float | list[float],
        Setting(
            "how fast distilled answers lose weight",
            low=0,
            note="the best of a list on validation",
            scope="adaptive",
        ),
    ] = 1
    distance_rows: Annotated[
        int,
        Setting("training rows for which the distance of answers to true titles is measured", low=1, scope="adaptive"),
    ] = 256
    sd_rows: Annotated[
        int | None,
        Setting(
            "training rows whose answers are distilled, drawn by seed; the others have their true title alone",
            low=1,
            null="all, as in the paper",
        ),
    ] = None
    sd_num_beams: Annotated[
        int | None,
        Setting(
            "beams of the search for distilled answers, and for answers whose distance is measured",
            low=1,
            high=1024,
            null="num_beams",
        ),
    ] = None
    sd_select: Annotated[
        str,
        Setting(
            "distilled answer",
            choices={"top": "the best beam", "nearest": "the beam nearest to the true title"},
        ),
    ] = "top"
    distil_on_trie: Annotated[
        bool,
        Setting(
            "the distilled answer, and the one whose distance is measured, is the title ranked first, not raw text"
        ),
    ] = False
    sd_empty: Annotated[
        str,
        Setting(
            "replacement of an empty distilled answer",
            choices={"real": "the true title", "keep": "an empty target"},
        ),
    ] = "real"
    sd_file: Annotated[
        str | None, Setting("file of distilled answers, answers.jsonl of the same rows", null="generates them")
    ] = None
    sd_permuted: Annotated[bool, Setting("control experiment: distilled answers are assigned to other rows")] = False
