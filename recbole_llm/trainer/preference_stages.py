"""The stages of a preference: the reference's log-probabilities, and the tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.curriculum import REAL
from recbole_llm.distributed import process
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.model.backbones import computes_in_half
from recbole_llm.model.base import TokenPair
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.modes import evaluating
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.objective.preferences import PreferenceObjective
from recbole_llm.prompt.trunk import Pass, Trunks
from recbole_llm.registry import find_choice
from recbole_llm.selection.training_rows import TrainingRows
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.stages import Stage
from recbole_llm.trainer.negatives import WrongAnswers
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.preference_loss import ContrastRows, PreferenceLoss, answer_sums, wrong_kinds
from recbole_llm.trainer.tuning import Tuning
from recbole_llm.trainer.tuning_stages import ContinuedStage, Start

FILE = "values.npy"


@dataclass(frozen=True)
class Preference:
    """What the stages of one preference have in common.

    Attributes:
        tuning: model, config and evaluation.
        rows: the rows whose answers are set apart.
        start: the weights that it begins with, and which are the reference.
        wrong: the wrong answers of all draws, side by side.
        settings: settings of the axis.
    """

    tuning: Tuning
    rows: TrainingRows
    start: Start
    wrong: WrongAnswers
    settings: PreferenceSettings

    @property
    def model(self) -> BIGRec:
        """The recommender."""
        return cast(BIGRec, self.tuning.model)

    @property
    def objective(self) -> PreferenceObjective:
        """The loss of contrasts."""
        return cast("type[PreferenceObjective]", find_choice("preference", self.settings.preference))()

    @property
    def facts(self) -> dict[str, Any]:
        """What wrong answers and their reference depend on, as plain data."""
        return {
            "from": self.start.name,
            "negatives": self.wrong.digest,
            "rows": len(self.rows.examples),
            **({"cut": cut} if (cut := self._n_cut) else {}),
        }

    @cached_property
    def _n_cut(self) -> int:
        """Generated answers that the LLM has no positions for in full; titles of items always fit."""
        if self.wrong.texts is None:
            return 0
        whole = self.wrong.token_ids(self.model, [response for _, response in self.rows.examples])
        found = zip(whole, self.wrong_answers.values(), strict=True)
        return sum(len(one) > len(other) for pair in found for one, other in zip(*pair, strict=True))

    @cached_property
    def wrong_answers(self) -> dict[str, list[list[int]]]:
        """Token ids of the wrong answers by kind; the right one, which has no effect, if one is missing."""
        examples, model = self.rows.examples, self.model
        found = [
            [model.fitted(prompt, answer) for (prompt, _), answer in zip(examples, column, strict=True)]
            for column in self.wrong.token_ids(model, [response for _, response in examples])
        ]
        return dict(zip(wrong_kinds(len(found)), found, strict=True))

    def reader(self) -> AnswerReader:
        """Reads log-probabilities among the whole vocabulary."""
        return AnswerReader(self.model.scorer, takes_branches=self.model.takes_branches)


class ReferenceStage(Stage[np.ndarray]):
    """Log-probabilities of right and wrong answers under the weights that a preference begins with.

    They are scored once: no second copy of the weights is kept, whatever the adapter is.

    Args:
        preference: its rows, wrong answers and start.
        name: name of the stage.
    """

    name = "reference"
    is_joint = True

    def __init__(self, preference: Preference, name: str | None = None) -> None:
        self._preference, self.name = preference, name or self.name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self._preference.facts

    @torch.no_grad()
    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the weights of the start."""
        own, model = self._preference, self._preference.model
        own.start.restore()
        answers = {REAL: [response for _, response in own.rows.examples], **own.wrong_answers}
        prompts, kinds = [prompt for prompt, _ in own.rows.examples], list(answers)
        settings = FineTuneSettings.from_settings(own.tuning.config.final_config_dict)
        passes = Passes(model, prompts, own.rows.histories, answers, settings, own.rows.trunks)
        lengths = passes.prompt_lengths + sum(passes.answer_lengths.values())
        found, reader = np.zeros((len(prompts), len(kinds)), dtype=np.float32), own.reader()
        steps = np.split(
            np.arange(len(prompts)), range(settings.train_batch_size, len(prompts), settings.train_batch_size)
        )
        together = [one for rows in steps for one in passes.of_step(rows, kinds, lengths)]
        kept = model.keep("reference", lambda: own.facts)

        def sums(one: Pass) -> dict[int, list[float]]:
            with model.autocast():
                values = answer_sums(passes, one, kinds, reader).float().cpu().tolist()
            return dict(zip(one.rows, values, strict=True))

        with evaluating(model):
            for one in process().own(together):
                values = kept.batch(one.rows, lambda _, one=one: sums(one))  # type: ignore[misc]
                found[one.rows] = [values[row] for row in one.rows]
        process().complete(found, [one.rows for one in together])
        if process().is_main:
            np.save(folder / FILE, found)

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: float32 [rows, 1 + k]."""
        found: np.ndarray = np.load(folder / FILE)
        return found


class RowsStage(ContinuedStage):
    """A tuning of a preference's rows that continues from its start, at its rate.

    Args:
        tuning: what it is evaluated with; the preference's own, or without a validation.
        preference: rows, start and settings.
        epochs: largest number of epochs.
        name: name of the stage.
    """

    def __init__(self, tuning: Tuning, preference: Preference, epochs: int, name: str) -> None:
        super().__init__(tuning, preference.start, epochs, preference.settings.learning_rate)
        self.preference, self.name = preference, name

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """See :class:`FineTuneStage`."""
        return self.preference.rows.beside([])


class PreferenceStage(RowsStage):
    """The fine-tuned adapter, tuned further on contrasts of right and wrong answers.

    Args:
        preference: its rows, wrong answers and start.
        beta: strength.
        draws: masks, reference and vectors of the rows, by epoch or for all.
        name: name of the stage.
    """

    name = "preference"
    group = "Preference/"

    def __init__(
        self, preference: Preference, beta: float, draws: Sequence[ContrastRows], name: str | None = None
    ) -> None:
        super().__init__(preference.tuning, preference, preference.settings.epochs, name or self.name)
        self.beta, self.draws = beta, draws

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own, settings = self.preference, self.preference.settings
        facts = {"preference": settings.preference, "beta": self.beta, **own.facts}
        if settings.nll_weight:
            facts["nll_weight"] = settings.nll_weight
        if len(self.draws) > 1:
            facts["draws"] = len(self.draws)
        if self.draws[0].across is not None and settings.mask_user_train:  # it masks other rows' answers as well
            facts["mask_user_train"] = True
        if self.draws[0].across is not None and own.objective.compares_prompts:
            vectors = self.draws[0].prompts
            facts["prompts"] = None if vectors is None else hash_arrays(vectors)
            facts["temperature"] = settings.temperature
            if computes_in_half(own.tuning.config):  # in which their weights used to be computed
                facts["contrasts"] = "float32"
        return {**super().facts(), "preference": facts}

    def make_loss(self, passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> PreferenceLoss:
        """See :class:`FineTuneStage`."""
        own, settings = self.preference, self.preference.settings
        options = (settings.temperature, self.draws, own.reader(), settings.nll_weight)
        return PreferenceLoss(passes, own.objective, self.beta, *options)

    def more_answers(self) -> Mapping[str, Sequence[list[int]]]:
        """See :class:`FineTuneStage`."""
        return self.preference.wrong_answers

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`."""
        return self.warmup_doubts(len(self.preference.rows.examples))

    def told(self) -> dict[str, Any]:
        """See :class:`FineTuneStage`."""
        return {"settings": {"beta": self.beta}}
