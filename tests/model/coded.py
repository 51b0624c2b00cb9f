"""Runs of models that name items by codes, on a small world with prompts that are little more than codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import recbole_llm
from tests.runs import working_in

# A prompt that is the history alone costs a fifth of the time.
WORDING = """
item: movie
items: movies
verb: watched
code_preamble: ""
code_instruction: ""
code_input: "{history}"
code_to_title: "Name {code}"
title_to_code: "Code of {title}"
user_input: "{user}:{history}"
user_search: "{code} by {user}"
"""
SETTINGS = {
    "prompt_style": "plain",
    "sid_levels": 2,
    "sid_codes": 4,
    "epochs": 2,
    "stopping_step": 0,
    "train_batch_size": 16,
    "train_sample_size": 24,
    "learning_rate": 0.005,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "lora_r": 8,
    "lora_dropout": 0.0,
    "topk": [1, 5],
    "num_beams": 8,
    "valid_metric": "NDCG@5",
    "show_progress": False,
    "state": "ERROR",
}


def coded_run(model: str, world: Path, root: Path, llm: Path, saved: Path | None = None, **settings: Any) -> Any:
    """A run on a world; with the stages in ``root`` unless ``saved`` is given."""
    wording = root / "short.yaml"
    wording.write_text(WORDING)
    where = {"llm_path": str(llm), "domain": str(wording), "data_path": str(world.parent)}
    where["checkpoint_dir"] = str(saved or root / "saved")
    with working_in(root):
        return recbole_llm.run(model, world.name, **{**SETTINGS, **where, **settings})


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    """The weights in a run's folder."""
    files = sorted((run.folder / "adapter").glob("*.safetensors"))
    return {f"{file.stem}.{name}": weight for file in files for name, weight in load_file(file).items()}


def same_bits(one: Any, other: Any) -> bool:
    """Whether two runs left the same weights."""
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
