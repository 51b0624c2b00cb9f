"""The stages between the two tunings: the fine-tuned model's answers, and the untuned LLM's distance.

Both are searched for with the beams of distillation (``sd_num_beams``), whatever ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recbole_llm.data.rows import rows_digest
from recbole_llm.disk import write_json
from recbole_llm.distributed import process
from recbole_llm.hashing import hash_arrays
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.stages import Stage
from recbole_llm.trainer.distillation import ANSWERS, RANKED, DistanceMeter, distil, read_answers
from recbole_llm.trainer.tuning import State, Tuning, TuningResult, load_adapter


class DistilStage(Stage[list[str]]):
    """The fine-tuned model's raw answers to its training prompts.

    Args:
        tuning: its model and rows.
        fine_tuned: the result of the fine-tuning.
        chosen: int64, the readable rows that are answered, ascending.
    """

    name = "distil"
    is_joint = True

    def __init__(self, tuning: Tuning, fine_tuned: TuningResult, chosen: np.ndarray) -> None:
        self._tuning, self._fine_tuned, self._chosen = tuning, fine_tuned, chosen
        self._examples = [tuning.rows.examples[row] for row in chosen]

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        tuning = self._tuning
        facts = {
            "fine-tuned": tuning.facts,
            "generation": tuning.generation,
            "select": tuning.distillation.sd_select,
            **tuning.on_trie,
        }
        some = len(self._chosen) < len(tuning.rows.examples)
        return {**facts, "chosen": hash_arrays(self._chosen)} if some else facts

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the fine-tuned weights."""
        model, settings = cast(BIGRec, self._tuning.model), self._tuning.distillation
        load_adapter(model, self._fine_tuned.folder / "adapter")
        rows = self._tuning.rows.readable[torch.from_numpy(self._chosen)]
        select = RANKED if settings.distil_on_trie else settings.sd_select
        with model.searching(settings.sd_num_beams):
            distil(model, rows, self._examples, select, folder, self._tuning.show_progress)

    def load(self, folder: Path) -> list[str]:
        """See :class:`Stage`."""
        return read_answers(folder / ANSWERS, self._examples)


class DistanceStage(Stage[float]):
    """Distance of the untuned LLM's answers from the true titles: the same for every curriculum.

    Args:
        tuning: its model and rows.
        meter: measures.
        untuned: the adapter's weights before any tuning.
    """

    name = "initial-distance"
    is_joint = True

    def __init__(self, tuning: Tuning, meter: DistanceMeter, untuned: State) -> None:
        self._tuning, self._meter, self._untuned = tuning, meter, untuned

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        tuning = self._tuning
        return {
            "model": tuning.model.facts(),
            "recommender": type(tuning.model).__name__,
            "rows": rows_digest(tuning.rows.data),
            "distance_rows": tuning.distillation.distance_rows,
            "generation": tuning.generation,
            "seed": tuning.config["seed"],
            **tuning.on_trie,
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the model gets the untuned weights."""
        self._tuning.model.adapter.load_trainable_state(self._tuning.model.llm, self._untuned)
        distance = self._meter.measure()
        if process().is_main:
            write_json(folder / "distance.json", {"distance": distance})

    def load(self, folder: Path) -> float:
        """See :class:`Stage`."""
        return float(json.loads((folder / "distance.json").read_text(encoding="utf-8"))["distance"])
