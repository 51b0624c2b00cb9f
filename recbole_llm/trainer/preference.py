"""The stages after fine-tuning that set right answers apart from wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.curriculum import REAL
from recbole_llm.distributed import process
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.model.base import TokenPair
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.modes import evaluating
from recbole_llm.objective.preference_settings import SELF_PLAY, PreferenceSettings
from recbole_llm.objective.preferences import PreferenceObjective
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.registry import find_choice
from recbole_llm.selection.training_rows import TrainingRows
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.stages import Stage
from recbole_llm.trainer.finetune import MakeLoss
from recbole_llm.trainer.guards import warmup_warning
from recbole_llm.trainer.negatives import contrasts_across, draw_negatives, own_answers
from recbole_llm.trainer.optimizer import group_options
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.preference_loss import Opposites, PreferenceLoss, answer_sums, rows_of, wrong_kinds
from recbole_llm.trainer.tuning import FineTuneStage, Tuning, TuningResult, load_adapter

FILE = "values.npy"


@dataclass(frozen=True)
class Preference:
    """What the stages of one preference have in common.

    Attributes:
        tuning: model, config and evaluation.
        rows: the rows whose answers are set apart.
        start: the tuning stage whose weights it begins with, and which is the reference.
        negatives: int64 [rows, k], wrong items; 0 where there is none.
        settings: of the axis.
    """

    tuning: Tuning
    rows: TrainingRows
    start: TuningResult
    negatives: np.ndarray
    settings: PreferenceSettings

    @property
    def model(self) -> BIGRec:
        """The recommender."""
        return cast(BIGRec, self.tuning.model)

    @property
    def facts(self) -> dict[str, Any]:
        """What wrong answers and their reference depend on, as plain data."""
        return {
            "from": self.start.folder.name,
            "negatives": hash_arrays(self.negatives),
            "rows": len(self.rows.examples),
        }

    @cached_property
    def wrong_answers(self) -> dict[str, list[list[int]]]:
        """Token ids of the wrong answers by kind; the right one, which changes nothing, where there is none."""
        right = [response for _, response in self.rows.examples]
        return {
            kind: [self.model.response(int(item)) if item else own for item, own in zip(items, right, strict=True)]
            for kind, items in zip(wrong_kinds(self.negatives.shape[1]), self.negatives.T, strict=True)
        }

    @property
    def fine_tune_settings(self) -> FineTuneSettings:
        """How the stage is trained: as fine-tuning, with epochs and a learning rate of its own."""
        own = FineTuneSettings.from_settings(self.tuning.config.final_config_dict)
        rate = self.settings.learning_rate or own.learning_rate / 10
        return replace(own, epochs=self.settings.epochs, learning_rate=rate)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser at the stage's learning rate."""
        optimizer = self.tuning.make_optimizer()
        ratio = self.fine_tune_settings.learning_rate / self.tuning.config["learning_rate"]
        for group in optimizer.param_groups:
            group["lr"] *= ratio
        return optimizer

    def reader(self) -> AnswerReader:
        """Reads log-probabilities among the whole vocabulary."""
        return AnswerReader(self.model.scorer, takes_branches=self.model.takes_branches)


class ReferenceStage(Stage[np.ndarray]):
    """Log-probabilities of right and wrong answers under the weights that a preference begins with.

    They are scored once: no second copy of the weights is kept, whatever the adapter is.

    Args:
        preference: its rows, wrong answers and start.
        name: of the stage.
    """

    is_joint = True

    def __init__(self, preference: Preference, name: str = "reference") -> None:
        self._preference, self.name = preference, name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return self._preference.facts

    @torch.no_grad()
    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the weights of the start."""
        own, model = self._preference, self._preference.model
        load_adapter(model, own.start.folder / "adapter")
        answers = {REAL: [response for _, response in own.rows.examples], **own.wrong_answers}
        prompts, kinds = [prompt for prompt, _ in own.rows.examples], list(answers)
        settings = own.fine_tune_settings
        passes = Passes(model, prompts, own.rows.histories, answers, settings, own.rows.trunks)
        lengths = passes.prompt_lengths + sum(passes.answer_lengths.values())
        found, reader = np.zeros((len(prompts), len(kinds)), dtype=np.float32), own.reader()
        steps = np.split(
            np.arange(len(prompts)), range(settings.train_batch_size, len(prompts), settings.train_batch_size)
        )
        together = [one for rows in steps for one in passes.of_step(rows, kinds, lengths)]
        with evaluating(model):
            for one in process().own(together):
                with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.enable_amp):
                    found[rows_of(one)] = answer_sums(passes, one, kinds, reader).float().cpu().numpy()
        process().complete(found, [rows_of(one) for one in together])
        if process().is_main:
            np.save(folder / FILE, found)

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: float32 [rows, 1 + k]."""
        found: np.ndarray = np.load(folder / FILE)
        return found


class PreferenceStage(FineTuneStage):
    """The fine-tuned adapter, tuned further on contrasts of right and wrong answers.

    Args:
        preference: its rows, wrong answers and start.
        beta: strength.
        opposites: masks, reference and vectors of the rows.
        name: of the stage.
    """

    group = "Preference/"

    def __init__(self, preference: Preference, beta: float, opposites: Opposites, name: str = "preference") -> None:
        super().__init__(preference.tuning)
        self.preference, self.beta, self.opposites, self.name = preference, beta, opposites, name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own, settings = self.preference, self.preference.settings
        facts = {"preference": settings.preference, "beta": self.beta, **own.facts}
        if self.opposites.across is not None:
            vectors = self.opposites.prompts
            facts["prompts"] = None if vectors is None else hash_arrays(vectors)
            facts["temperature"] = settings.temperature
        settings_facts = {**own.fine_tune_settings.facts(), **group_options(self.tuning.config, own.model)}
        return {**super().facts(), "preference": facts, "settings": settings_facts}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from those of the start."""
        load_adapter(self.preference.model, self.preference.start.folder / "adapter")
        super().compute(folder)

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """See :class:`FineTuneStage`."""
        return self.preference.rows.beside([])

    @property
    def settings(self) -> FineTuneSettings:
        """See :class:`FineTuneStage`."""
        return self.preference.fine_tune_settings

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See :class:`FineTuneStage`."""
        return self.preference.make_optimizer()

    def make_loss(self) -> MakeLoss:
        """See :class:`FineTuneStage`."""
        settings, reader = self.preference.settings, self.preference.reader()
        objective = cast("type[PreferenceObjective]", find_choice("preference", settings.preference))()

        def make(passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> PreferenceLoss:
            return PreferenceLoss(passes, objective, self.beta, settings.temperature, self.opposites, reader)

        return make

    def more_answers(self) -> Mapping[str, Sequence[list[int]]]:
        """See :class:`FineTuneStage`."""
        return self.preference.wrong_answers

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`."""
        steps = self.settings.steps(len(self.preference.rows.examples))
        return warmup_warning(self.settings.warmup(steps), steps)

    def told(self) -> dict[str, Any]:
        """See :class:`FineTuneStage`."""
        return {"settings": {"beta": self.beta}}


class OwnAnswersStage(Stage[np.ndarray]):
    """What the model itself answers, greedily, to the rows of a round: its wrong answers, as items.

    Args:
        tuning: model and config.
        rows: of the round.
        start: the stage whose weights answer.
        drawn: int64, which training rows they are.
        name: of the stage.
    """

    is_joint = True

    def __init__(self, tuning: Tuning, rows: TrainingRows, start: TuningResult, drawn: np.ndarray, name: str) -> None:
        self._tuning, self._rows, self._start, self._drawn, self.name = tuning, rows, start, drawn, name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {
            "from": self._start.folder.name,
            "rows": hash_arrays(self._drawn),
            "max_new_tokens": self._tuning.config["max_new_tokens"],
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the weights of the start."""
        model = cast(BIGRec, self._tuning.model)
        load_adapter(model, self._start.folder / "adapter")
        found = own_answers(model, self._rows)
        if process().is_main:
            np.save(folder / FILE, found)

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: int64 [rows, 1], items; 0 where there is none."""
        found: np.ndarray = np.load(folder / FILE)
        return found


class RoundTuneStage(FineTuneStage):
    """The fine-tuning of a round: an epoch on the true answers of its rows, from the weights of the round before.

    Args:
        preference: rows and start; its wrong answers are not read.
        drawn: int64, which training rows they are.
        name: of the stage.
    """

    group = "Preference/Fine-tune/"

    def __init__(self, preference: Preference, drawn: np.ndarray, name: str) -> None:
        super().__init__(replace(preference.tuning, validation=None))
        self.preference, self.drawn, self.name = preference, drawn, name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = {"from": self.preference.start.folder.name, "drawn": hash_arrays(self.drawn)}
        settings = {**self.settings.facts(), **group_options(self.tuning.config, self.preference.model)}
        return {**super().facts(), **own, "settings": settings}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from those of the start."""
        load_adapter(self.preference.model, self.preference.start.folder / "adapter")
        super().compute(folder)

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """See :class:`FineTuneStage`."""
        return self.preference.rows.beside([])

    @property
    def settings(self) -> FineTuneSettings:
        """See :class:`FineTuneStage`."""
        return replace(self.preference.fine_tune_settings, epochs=1)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See :class:`FineTuneStage`."""
        return self.preference.make_optimizer()

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`; what there is to doubt of fine-tuning was told of the first."""
        return []


def prefer(tuning: Tuning, start: TuningResult) -> list[TuningResult]:
    """Run the preference stages of a run after its last tuning stage.

    Args:
        tuning: what the stages share.
        start: the last tuning stage.

    Returns:
        A result for each strength, or for each round; the model has the weights of the last.
    """
    settings = PreferenceSettings.from_settings(tuning.config.final_config_dict)
    if settings.preference == SELF_PLAY:
        return _rounds(tuning, start, settings)
    model = cast(BIGRec, tuning.model)
    negatives = draw_negatives(model, tuning.rows, settings.negatives, settings.n_negatives)
    own = Preference(tuning, tuning.rows, start, negatives, settings)
    reference = model.stages.run(ReferenceStage(own))
    opposites = Opposites(negatives > 0, reference, *_across(own))
    return [model.stages.run(PreferenceStage(own, beta, opposites)) for beta in settings.betas]


def _rounds(tuning: Tuning, start: TuningResult, settings: PreferenceSettings) -> list[TuningResult]:
    """SPRec (arXiv 2412.09243): answers, an epoch of fine-tuning, and dpo against the answers, round by round."""
    model, found = cast(BIGRec, tuning.model), list[TuningResult]()
    n_rows = len(tuning.rows.examples)
    for number in range(1, settings.rounds + 1):
        generator = np.random.default_rng(model.stage_seed("sprec", number))
        drawn = np.sort(generator.choice(n_rows, min(settings.round_rows, n_rows), replace=False))
        rows = _some(tuning.rows, drawn)
        negatives = model.stages.run(OwnAnswersStage(tuning, rows, start, drawn, f"answers-{number}"))
        before = Preference(tuning, rows, start, negatives, settings)
        tuned = model.stages.run(RoundTuneStage(before, drawn, f"round-{number}-fine-tune"))
        own = replace(before, start=tuned)
        reference = model.stages.run(ReferenceStage(own, f"round-{number}-reference"))
        stage = PreferenceStage(own, settings.betas[0], Opposites(negatives > 0, reference), f"round-{number}")
        start = model.stages.run(stage)
        found.append(start)
    return found


def _across(own: Preference) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What rows that stand against one another need: which may, and vectors of their prompts."""
    choice = cast("type[PreferenceObjective]", find_choice("preference", own.settings.preference))
    if not choice.across_rows:
        return None, None
    model, vectors = own.model, None
    if own.settings.prompts == "recommender":
        vectors = model.auxiliary.sequence_states(own.rows.histories)
    elif own.settings.prompts == "llm":
        vectors = model.embed([model.prompts.text(example) for example in model.examples(own.rows.readable)])
    return contrasts_across(model, own.rows, own.negatives), vectors


def _some(rows: TrainingRows, drawn: np.ndarray) -> TrainingRows:
    """Some of the rows, each computed apart."""
    return replace(
        rows,
        readable=rows.readable[torch.from_numpy(drawn)],
        examples=[rows.examples[row] for row in drawn],
        histories=[rows.histories[row] for row in drawn],
        trunks=None,
    )
