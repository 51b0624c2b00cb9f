"""The stages of a run in their order: fine-tune, distil, distance, curriculum, preference, each where it is needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from recbole_llm.curriculum import Curriculum, make_curricula
from recbole_llm.hashing import hash_arrays, hash_file
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.model.ttds import TTDS
from recbole_llm.semantic_ids.settings import TwinSettings
from recbole_llm.settings.config import Config
from recbole_llm.stages import Stage
from recbole_llm.stages.stage import Result
from recbole_llm.timeline import timeline
from recbole_llm.trainer.distil_stages import DistanceStage, DistilStage
from recbole_llm.trainer.distillation import DistanceMeter, chosen_rows, distilled_targets, read_answers
from recbole_llm.trainer.fixed_codes import FixedCodesStage
from recbole_llm.trainer.preference import prefer, preference_stages
from recbole_llm.trainer.tuning import State, Tuning, TuningResult, load_adapter
from recbole_llm.trainer.tuning_stages import CurriculumStage, FineTuneStage, FirstEpochStage

log = logging.getLogger(__name__)


def tuning_stages(config: Config) -> list[str]:
    """Names of the stages that :class:`Pipeline` goes through, in order: a curriculum for each value of ``alpha``.

    Args:
        config: the resolved config.
    """
    found: list[str] = []
    if config["epochs"]:
        curricula, distils = make_curricula(config), config["sd_file"] is None
        found += [FineTuneStage.name] if distils or not curricula else []
        found += [FixedCodesStage.name] if _fixes_codes(config) else []
        found += [DistilStage.name] if distils and curricula else []
        found += [DistanceStage.name] if any(curriculum.uses_distance for curriculum in curricula) else []
        found += [FirstEpochStage.name] if _shares_first_epoch(curricula) else []
        found += [CurriculumStage.name] * len(curricula)
    return found + preference_stages(config)


def _fixes_codes(config: Config) -> bool:
    """Whether TTDS's second tuning is to come."""
    is_twin = issubclass(config.model_class, TTDS)
    return is_twin and bool(TwinSettings.from_settings(config.final_config_dict).fixed_epochs)


def _shares_first_epoch(curricula: Sequence[Curriculum]) -> bool:
    """Whether there are several curricula, which the distance tells apart: before the first epoch there is but one."""
    return len(curricula) > 1 and curricula[0].uses_distance


@dataclass
class Pipeline:
    """Runs the tuning stages; afterwards the model has the weights of the last one.

    Args:
        tuning: what the stages share.
        curricula: one for each value of ``alpha``; none where every row is trained towards its true title alone.

    Attributes:
        tuned: results of the tuning stages, in their order.
        distilled: folder of the distilled answers, if the curriculum used some that were generated.
        tried: results of the curricula, one for each value of ``alpha``; the best of them is the last of ``tuned``.
    """

    tuning: Tuning
    curricula: Sequence[Curriculum]
    tuned: list[TuningResult] = field(default_factory=list)
    distilled: Path | None = None
    tried: list[TuningResult] = field(default_factory=list)

    def run(self) -> None:
        """Run what the curricula need, or fine-tune alone, or nothing; then the preference, if there is one."""
        self.tuning.model.adapter.prepare_rows(self.tuning.rows.histories)
        planned = tuning_stages(self.tuning.config)
        if self.tuning.config["epochs"]:
            self._tune(planned)
        if self.tuning.config["preference"] != "none":
            self.tuned.append(self._best(prefer(self.tuning, self.tuned[-1] if self.tuned else None)))

    def _tune(self, planned: Sequence[str]) -> None:
        tuning = self.tuning
        untuned = tuning.model.adapter.trainable_state(tuning.model.llm)
        if FineTuneStage.name in planned:
            self.tuned.append(self._run(FineTuneStage(tuning)))
        if FixedCodesStage.name in planned:
            self.tuned.append(self._run(FixedCodesStage(tuning, self.tuned[-1])))
        if not self.curricula:
            return
        answers, source = self._targets()
        stages = [self._stage(curriculum, answers, source, untuned) for curriculum in self.curricula]
        if FirstEpochStage.name in planned:
            self._share_first_epoch(stages)
        self.tried = list(map(self._run, stages))
        self.tuned.append(self._best(self.tried))

    def _share_first_epoch(self, curricula: Sequence[CurriculumStage]) -> None:
        """Let curricula go on from one first epoch, if they begin alike and one of them is still to be computed."""
        stage = FirstEpochStage(curricula[0])
        if len({one.first_weight for one in curricula}) > 1 or all(map(self.tuning.model.stages.has, curricula)):
            timeline().begin(stage.name)
            log.info("Stage %s: not needed", stage.name)
            return
        begun = self._run(stage)
        for curriculum in curricula:
            curriculum.begun = begun

    def _run(self, stage: Stage[Result]) -> Result:
        """The result of a stage, which is said to begin."""
        timeline().begin(stage.name)
        return self.tuning.model.stages.run(stage)

    def _targets(self) -> tuple[list[list[int]], Any]:
        """Token ids of the distilled answer to each row, none where it has none; and what they depend on."""
        tuning = self.tuning
        model, examples = cast(BIGRec, tuning.model), tuning.rows.examples
        chosen = chosen_rows(len(examples), tuning.distillation.sd_rows, model.stage_seed("distilled rows"))
        if len(chosen) < len(examples):
            log.info("sd_rows: answers to %s of %s training rows.", f"{len(chosen):,}", f"{len(examples):,}")
        texts, source = self._distilled_answers(chosen)
        found = distilled_targets(model, texts, [examples[row] for row in chosen], tuning.config)
        answers: list[list[int]] = [[] for _ in examples]
        for row, answer in zip(chosen, found, strict=True):
            answers[row] = model.fitted(examples[row][0], answer)
        cut = sum(len(answers[row]) < len(answer) for row, answer in zip(chosen, found, strict=True))
        if cut:
            log.warning("%d distilled answers lost their end: the LLM has no positions for more.", cut)
            source = {"cut": cut, "source": source}
        return answers, source

    def _distilled_answers(self, chosen: np.ndarray) -> tuple[list[str], Any]:
        """Distilled answers to the chosen rows, by the fine-tuned model or of ``sd_file``; and what they depend on."""
        tuning, stages = self.tuning, self.tuning.model.stages
        given = tuning.distillation.sd_file
        if given is not None:
            examples = [tuning.rows.examples[row] for row in chosen]
            # Distances are those of answers that the model itself generates.
            facts = {"file": hash_file(Path(given)), "chosen": hash_arrays(chosen), "generation": tuning.generation}
            return read_answers(Path(given), examples), facts
        distil = DistilStage(tuning, self.tuned[-1], chosen)
        texts = self._run(distil)
        self.distilled = stages.folder(distil)
        return texts, distil.facts()

    def _stage(
        self, curriculum: Curriculum, answers: Sequence[list[int]], source: Any, untuned: State
    ) -> CurriculumStage:
        """The stage of one curriculum, the distance at its start measured where it is used."""
        tuning, meter, distance = self.tuning, None, None
        if curriculum.uses_distance:
            settings = tuning.distillation
            model, rows = cast(BIGRec, tuning.model), tuning.rows.readable
            meter = DistanceMeter(model, rows, settings.distance_rows, settings.sd_num_beams)
            distance = self._run(DistanceStage(tuning, meter, untuned))
        group = "Curriculum/" + (f"alpha {curriculum.facts()['alpha']:g}/" if len(self.curricula) > 1 else "")
        return CurriculumStage(tuning, curriculum, answers, source, untuned, meter, distance, group)

    def _best(self, found: Sequence[TuningResult]) -> TuningResult:
        """The best curriculum or preference on validation, whose weights the model gets."""
        validation = self.tuning.validation
        if len(found) == 1 or validation is None:
            return found[0]
        best = max(found, key=lambda tuned: tuned.best_score(validation))
        log.info("%s: %s is the best on validation.", best.stage, best.settings)
        load_adapter(self.tuning.model, best.folder / "adapter")
        self.tuning.model.stages.used[best.stage] = best.folder.name
        return best
