"""``distill_into``: the classic model that learns an LLM's rankings, its settings and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from recbole_llm.classic.taught import Lessons
from recbole_llm.data.rows import load_rows
from recbole_llm.model.base import LLMRecommender
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import TeachingSettings
from recbole_llm.trainer.teaching import RankingStage

# Settings of the teacher that decide on which rows, and how, both are evaluated.
SAME = ("valid_sample_size", "test_sample_size", "head_share", "category_field", "seed")


def student_config(config: Config) -> Config:
    """The config of the classic model: RecBole's own training on the teacher's data, and ``distill_config``."""
    own = config["distill_config"] or {}
    student = config.for_auxiliary(cast(str, config["distill_into"]), {key: config[key] for key in SAME} | own)
    return student


def student_label(config: Config, teacher: str) -> str:
    """The name in the table of the classic model that a run teaches.

    Args:
        config: config of the classic model.
        teacher: name of the teacher in the table.
    """
    return f"{config['model']} from {teacher}"


def lessons_of(model: LLMRecommender, folder: Path, label: str) -> tuple[Lessons, str, Config]:
    """An LLM's lists for the training rows of the classic model that it teaches.

    Args:
        model: the LLM recommender, in the state that its run left.
        folder: folder of the run.
        label: name of the run in the table.

    Returns:
        The lists; a note for the table; the classic model's config.
    """
    settings = TeachingSettings.from_settings(model.config.final_config_dict)
    config = student_config(model.config)
    rows = load_rows(config, few_shot=False)
    stages = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    ids, items = model.stages.run(RankingStage(model, stages, rows.train, settings))
    learned = f"{label}'s {settings.topk} best items of {len(ids):,} rows"
    note = f"{student_label(config, label)} learns {learned} beside the true ones."
    return Lessons.of(ids, items, settings.weight, settings.decay), note, config
