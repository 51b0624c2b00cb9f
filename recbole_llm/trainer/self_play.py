"""SPRec's rounds: the model's own answers, an epoch of fine-tuning, and a preference against the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.disk import write_json
from recbole_llm.distributed import process
from recbole_llm.grounding.settings import GroundingSettings
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.settings import GenerationSettings
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.prompt.layout import LINES
from recbole_llm.selection.training_rows import TrainingRows
from recbole_llm.stages import Stage
from recbole_llm.timeline import timeline
from recbole_llm.trainer.negatives import WrongAnswers, as_they_are, grounded, known_items, own_texts
from recbole_llm.trainer.preference_loss import ContrastRows
from recbole_llm.trainer.preference_stages import FILE, Preference, PreferenceStage, ReferenceStage, RowsStage
from recbole_llm.trainer.tuning import Tuning, TuningResult
from recbole_llm.trainer.tuning_stages import Start

TEXTS = "texts.json"
# What else decides an answer, and what title it is taken for; a stage of the defaults says nothing of it.
ANSWERING = ("length_penalty", "first_line")
SEARCHING = ("faiss_index", "faiss_search")


class OwnAnswersStage(Stage[WrongAnswers]):
    """What the model itself answers, greedily, to some rows: its wrong answers.

    Args:
        tuning: model and config.
        rows: the rows that are answered.
        start: the weights that answer.
        drawn: int64, which training rows they are.
        settings: settings of the axis.
        name: name of the stage.
    """

    is_joint = True

    def __init__(
        self,
        tuning: Tuning,
        rows: TrainingRows,
        start: Start,
        drawn: np.ndarray,
        settings: PreferenceSettings,
        name: str,
    ) -> None:
        self._tuning, self._rows, self._start, self._drawn = tuning, rows, start, drawn
        self._settings, self.name = settings, name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        config = self._tuning.config.final_config_dict
        generation, usual = GenerationSettings.from_settings(config), GenerationSettings()
        index, usual_index = GroundingSettings.from_settings(config), GroundingSettings()
        searching = () if self._is_raw else SEARCHING
        by_line = self._tuning.model.prompts.layout.style == LINES
        return {
            "from": self._start.name,
            "rows": hash_arrays(self._drawn),
            "max_new_tokens": generation.max_new_tokens,
            **{name: value for name in ANSWERING if (value := getattr(generation, name)) != getattr(usual, name)},
            **{name: value for name in searching if (value := getattr(index, name)) != getattr(usual_index, name)},
            **({"answers": "raw, first line" if by_line else "raw"} if self._is_raw else {}),
            **({"mask_user_train": True} if self._settings.mask_user_train else {}),
        }

    @property
    def _is_raw(self) -> bool:
        return self._settings.self_negative == "raw"

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the weights of the start."""
        model = cast(BIGRec, self._tuning.model)
        self._start.restore()
        known = known_items(model, self._rows, self._settings.mask_user_train)
        read = as_they_are if self._is_raw else grounded
        found = read(model, self._rows, own_texts(model, self._rows), known)
        if process().is_main:
            np.save(folder / FILE, found.items)
        if process().is_main and found.texts is not None:
            write_json(folder / TEXTS, found.texts)

    def load(self, folder: Path) -> WrongAnswers:
        """See :class:`Stage`."""
        texts = json.loads((folder / TEXTS).read_text(encoding="utf-8")) if self._is_raw else None
        return WrongAnswers(np.load(folder / FILE), texts)


class RoundTuneStage(RowsStage):
    """The fine-tuning of a round: an epoch on the true answers of its rows, from the weights of the round before.

    Args:
        preference: rows and start; its wrong answers are not read.
        drawn: int64, which training rows they are.
        name: name of the stage.
    """

    group = "Preference/Fine-tune/"

    def __init__(self, preference: Preference, drawn: np.ndarray, name: str) -> None:
        super().__init__(replace(preference.tuning, validation=None), preference, 1, name)
        self.drawn = drawn

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {**super().facts(), "from": self.preference.start.name, "drawn": hash_arrays(self.drawn)}

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`; warnings about fine-tuning were given for the first stage."""
        return []


def round_name(number: int) -> str:
    """Name of the stage that ends a round, counted from 1."""
    return f"round-{number}"


def self_play(tuning: Tuning, start: Start, settings: PreferenceSettings) -> list[TuningResult]:
    """SPRec (arXiv 2412.09243): answers, an epoch of fine-tuning, and dpo against the answers, round by round.

    Args:
        tuning: what the stages share.
        start: the weights that the first round begins with.
        settings: settings of the axis.

    Returns:
        A result for each round; the model has the weights of the last.
    """
    model, found = cast(BIGRec, tuning.model), list[TuningResult]()
    n_rows = len(tuning.rows.examples)
    for number in range(1, settings.rounds + 1):
        name = round_name(number)
        timeline().begin(name)
        generator = np.random.default_rng(model.stage_seed("sprec", number))
        drawn = np.sort(generator.choice(n_rows, min(settings.round_rows, n_rows), replace=False))
        rows = some_rows(tuning.rows, drawn)
        wrong = model.stages.run(OwnAnswersStage(tuning, rows, start, drawn, settings, f"answers-{number}"))
        before = Preference(tuning, rows, start, wrong, settings)
        tuned = model.stages.run(RoundTuneStage(before, drawn, f"{name}-fine-tune"))
        own = replace(before, start=Start.of(tuning, tuned))
        reference = model.stages.run(ReferenceStage(own, f"{name}-reference"))
        stage = PreferenceStage(own, settings.betas[0], [ContrastRows(wrong.mask, reference)], name)
        found.append(model.stages.run(stage))
        start = Start.of(tuning, found[-1])
    return found


def some_rows(rows: TrainingRows, drawn: np.ndarray) -> TrainingRows:
    """Some of the rows, each computed apart."""
    return replace(
        rows,
        readable=rows.readable[torch.from_numpy(drawn)],
        examples=[rows.examples[row] for row in drawn],
        histories=[rows.histories[row] for row in drawn],
        trunks=None,
    )
