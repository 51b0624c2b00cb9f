"""Untuned models for the tests of row inputs and row selection, with stages that these tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from recbole_llm.data.rows import load_rows
from recbole_llm.selection.row_inputs import RowInputs
from recbole_llm.settings.config import Config
from tests.selection.rows import N_ROWS, Make, inputs_of


@pytest.fixture(scope="session")
def make(world: Path, deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(coreset="el2n")``: config, rows and untuned model, with stages of the session unless told otherwise."""
    saved = tmp_path_factory.mktemp("rows") / "saved"

    def build(model: str = "BIGRec", **settings: Any) -> tuple[Any, Any, Any]:
        defaults = {
            "data_path": str(world.parent),
            "checkpoint_dir": str(saved),
            "llm_path": str(deep),
            "lora_target_modules": "auto",
            "prompt_style": "plain",
            "train_sample_size": N_ROWS,
            "coreset_size": 6,
            "recommender_config": {"hidden_size": 16, "inner_size": 16, "epochs": 2},
            "show_progress": False,
        }
        config = Config(model, world.name, config_dict={**defaults, **settings})
        init_seed(config["seed"], config["reproducibility"])
        rows = load_rows(config, few_shot=True)
        return config, rows, config.model_class(config, rows.whole).to(config["device"])

    return build


@pytest.fixture(scope="session")
def clicks(make: Make) -> RowInputs:
    """Of all rows of TALLRec."""
    settings = {"tiny_steps": 5, "tiny_hidden_size": 32, "tiny_vocab_size": 512, "llm_path": "tiny"}
    config, rows, model = make("TALLRec", threshold={"rating": 4}, valid_metric="AUC", **settings)
    with torch.no_grad():  # a tie of Yes and No has no gradient of its own to speak of
        model.llm.get_output_embeddings().weight.mul_(3)
    return inputs_of(config, rows, model)
