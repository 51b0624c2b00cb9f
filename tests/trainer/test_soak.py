"""Long training leaks nothing: memory and open files after 200 epochs are what they were after the first ones."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.settings.config import Config
from recbole_llm.trainer.llm_trainer import LLMTrainer
from tests.runs import words_for, working_in

EPOCHS, WARM_UP = 200, 40
GROWTH = 0.01


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.hostile
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted by Linux")
def test_200_epochs_of_the_tiny_llm_leak_neither_memory_nor_files(tmp_path, world, capsys):
    """With validation, generation and a state after every step: all that an epoch does."""
    saved = tmp_path / "saved"
    saved.mkdir()
    small = ("--train_sample_size=12", "--valid_sample_size=4", "--test_sample_size=4", "--lora_dropout=0.1")
    words = (*small, f"--epochs={EPOCHS}", "--stopping_step=0", "--checkpoint_minutes=0", "--max_new_tokens=3")
    argv = [word for word in words_for("BIGRec", world, saved, *words) if not word.startswith("--model")]
    memory: list[int] = []
    files: list[int] = []

    def look(epoch: int, score: float) -> None:
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        files.append(open_files())

    with working_in(tmp_path):
        config = Config("BIGRec", world.name, argv=argv)
        rows: Any = load_rows(config, few_shot=True)
        model = config.model_class(config, rows.whole)
        trainer = LLMTrainer(config, model)
        trainer.fit(train_loader(config, rows), eval_loader(config, rows, "valid"), callback_fn=look)
    assert len(memory) == EPOCHS
    growth = memory[-1] / memory[WARM_UP] - 1
    with capsys.disabled():
        print(
            f"\n{EPOCHS} epochs: {memory[WARM_UP] / 2**20:.1f} MiB after {WARM_UP}, {memory[-1] / 2**20:.1f} at the end"
        )
        print(f"growth {growth:.3%}, open files {files[WARM_UP]} and {files[-1]}")
    assert growth < GROWTH
    assert len(set(files[WARM_UP:])) == 1
