"""A tuned LLM's rankings of training rows, which a classic model learns from (``distill_into``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.coreset.checks import share_of
from recbole_llm.data.rows import SAMPLE_ID, rows_digest
from recbole_llm.grounding import Grounding
from recbole_llm.kept import KeptRows
from recbole_llm.model.base import LLMRecommender
from recbole_llm.progress import Bar
from recbole_llm.registry import find_choice
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import TeachingSettings
from recbole_llm.stages import UNFINISHED, Stage, stage_seed
from recbole_llm.trainer.tuning import ANSWERING

CHUNK = 256  # rows ranked together, and kept
IDS, ITEMS = "sample_ids.npy", "items.npy"


class RankingStage(Stage[tuple[np.ndarray, np.ndarray]]):
    """The best items of training rows by an LLM as its run left it.

    Args:
        model: the recommender, in the state that was evaluated.
        stages: folders of the stages that led to it, by name.
        rows: training rows, a RecBole data set; those of the model that is taught.
        settings: how many rows and items.
    """

    name = "teacher-rankings"

    def __init__(self, model: LLMRecommender, stages: Mapping[str, str], rows: Any, settings: TeachingSettings) -> None:
        self._model, self._stages, self._rows, self._settings = model, dict(stages), rows, settings

    @property
    def _config(self) -> Config:
        return self._model.config

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        model, config = self._model, self._config
        grounding = cast("type[Grounding]", find_choice("grounding", config["grounding"]))
        names = (*ANSWERING, *grounding.settings, "reweight")
        rescore = getattr(model, "rescore", None)
        return {
            "stages": self._stages,
            "model": model.facts(),
            "recommender": type(model).__name__,
            "answering": {name: config[name] for name in names},
            "gamma": None if rescore is None else rescore.gamma,
            "columns": self._columns,
            "rows": rows_digest(self._rows),
            "n_rows": self._settings.rows,
            "topk": self._settings.topk,
            "seed": config["seed"],
        }

    @property
    def _columns(self) -> list[str]:
        """What the model is told of a row: all but its target, which is not to be ranked."""
        return [name for name in self._rows.inter_feat.columns if name != self._model.ITEM_ID]

    def _chosen(self) -> np.ndarray:
        """Indices of the rows that are ranked: all, or some drawn by seed."""
        n_rows, wanted = len(self._rows), self._settings.rows
        if wanted is None:
            return np.arange(n_rows)
        count = wanted if isinstance(wanted, int) else max(1, share_of(wanted, n_rows))
        generator = np.random.default_rng(stage_seed(self._config["seed"], "teach"))
        return np.sort(generator.permutation(n_rows)[:count])

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; a run that was killed continues after the last chunk that it kept."""
        self._model.eval()
        # Not model.keep: the stage's name tells all that the lists depend on, so the weights need not be hashed.
        chosen, kept = self._chosen(), KeptRows(folder / UNFINISHED, "rankings")
        found: dict[int, list[int]] = {}
        starts = range(0, len(chosen), CHUNK)
        for start in Bar(starts, desc="Teach", unit="chunk", ncols=100, disable=not self._model.show_progress):
            found |= kept.batch(chosen[start : start + CHUNK].tolist(), self._rank)
        np.save(folder / ITEMS, np.array([found[row] for row in chosen.tolist()], dtype=np.int64))
        np.save(folder / IDS, self._rows.inter_feat[SAMPLE_ID].numpy()[chosen])

    @torch.no_grad()
    def _rank(self, rows: Sequence[int]) -> dict[int, list[int]]:
        """The best items of rows, by their indices."""
        part = self._rows.inter_feat[torch.tensor(rows)]
        asked = Interaction({name: part[name] for name in self._columns}).to(self._model.device)
        return dict(zip(rows, self._model.rank(asked, self._settings.topk).top_items.tolist(), strict=True))

    def load(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Stage`. Returns: sample ids int64 [lists] and items int64 [lists, k]."""
        return np.load(folder / IDS), np.load(folder / ITEMS)
