"""Settings of small runs from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small(world: Path, saved: Path) -> dict[str, Any]:
    """Settings for any model on the world."""
    return {
        "data_path": str(world.parent),
        "checkpoint_dir": str(saved),
        "epochs": 2,
        "topk": [1, 5, 10],
        "valid_metric": "NDCG@10",
        "show_progress": False,
    }


@pytest.fixture(scope="session")
def small_llm(small: dict[str, Any], llama: Path) -> dict[str, Any]:
    """Settings for an LLM recommender that needs no stage but its own."""
    return {
        **small,
        "llm_path": str(llama),
        "prompt_style": "plain",
        "lora_target_modules": "auto",
        "lora_dropout": 0,
        "num_beams": 2,
        "max_new_tokens": 6,
        "epochs": 1,
        "train_batch_size": 32,
    }
