"""Fine-tuning on all rows of a few users of ml-100k in trunks, against the same rows apart.

    python -m benchmarks.speed_trunk [--sections history-20,history-10] [--repeats 3] [--json out.json]

An epoch is forward, backward and AdamW on LoRA weights of the tiny LLM in its default size, in steps of 32 rows, by the
code that a run takes; its tokenizer is that of a run, its weights are hardly trained, which costs the same. Every
procedure has the same targets, so the ratio of the times is that of targets per second. Rows apart see up to so many
items of history; in trunks longer histories are segments that overlap by half. The third procedure tells what of the
gain is due to shorter histories: the rows of the segments, each apart. How time is measured is said in
``benchmarks/harness.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from recbole.utils import init_seed

from benchmarks.harness import Goal, Section, Work, main
from recbole_llm.data.rows import load_rows
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.selection.row_selection import select_rows
from recbole_llm.selection.training_rows import TrainingRows, subset
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.finetune import FineTuning

USERS, BATCH = 4, 32
APART, CUT, TRUNKS = "rows apart", "rows apart, histories of the segments", "trunks"
SIZES = {f"history-{longest}": longest for longest in (20, 10)}


@cache
def stages() -> str:
    """Folder of the tiny LLM, which both lengths of history and both units share."""
    return tempfile.mkdtemp()


def load(longest: int, unit: str) -> tuple[LLMRecommender, TrainingRows]:
    """The model, and the rows of the users as it is trained on them."""
    settings = {
        "checkpoint_dir": stages(),
        "MAX_ITEM_LIST_LENGTH": longest,
        "train_unit": unit,
        "train_sample_size": None,
        "tiny_steps": 1,
        "lora_dropout": 0.0,
        "show_progress": False,
    }
    config = Config("BIGRec", "ml-100k", config_dict=settings)
    init_seed(0, True)
    rows = load_rows(config, few_shot=False).train
    users = rows.inter_feat[rows.uid_field].numpy()
    chosen = np.random.default_rng(0).choice(np.unique(users), USERS, replace=False)
    rows = subset(rows, np.flatnonzero(np.isin(users, chosen)))
    model = BIGRec(config, rows)
    return model, select_rows(model, config, rows, None)[0]


def epoch(model: LLMRecommender, rows: TrainingRows) -> float:
    """One epoch at a learning rate that changes nothing. Returns: its loss."""
    settings = FineTuneSettings(
        epochs=1, train_batch_size=BATCH, learning_rate=1e-12, warmup_steps=0, lr_scheduler="constant", eval_step=0
    )
    weights = [weight for weight in model.llm.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate)
    tuning = FineTuning(model, rows.examples, rows.histories, settings, optimizer, trunks=rows.trunks)
    with tempfile.TemporaryDirectory() as folder:
        return float(tuning.run(Path(folder))[0]["train_loss"])


def epoch_apart(model: LLMRecommender, rows: TrainingRows) -> float:
    """The same steps, with each row in a place of its own."""
    with patch.object(model, "takes_trunks", return_value=False):
        return epoch(model, rows)


def work_of(longest: int) -> Callable[[], Work]:
    """The procedures at one length of history; each returns the loss of its epoch."""

    def work() -> Work:
        apart, trunks = (load(longest, unit) for unit in ("row", "user"))
        return {
            APART: lambda: epoch(*apart),
            CUT: lambda: epoch_apart(*trunks),
            TRUNKS: lambda: epoch(*trunks),
        }

    return work


def facts_of(longest: int) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Checks that trunks have the loss of their rows apart; what the sections' rows are."""

    def check(results: dict[str, Any]) -> Mapping[str, Any]:
        assert abs(results[TRUNKS] - results[CUT]) < 1e-4
        (_, apart), (_, trunks) = (load(longest, unit) for unit in ("row", "user"))
        tokens, items = (
            [np.mean([part(row) for row in found.examples]) for found in (apart, trunks)]
            for part in (lambda row: len(row[0]) + len(row[1]), lambda row: len(row[1]))
        )
        seen = [np.mean([len(history) for history in found.histories]) for found in (apart, trunks)]
        return {
            "targets": len(apart.examples),
            "trunks": len(trunks.trunks or ()),
            "tokens of a row": tokens[0],
            "of it the answer": items[0],
            "items seen apart": seen[0],
            "items seen in trunks": seen[1],
        }

    return check


SECTIONS = {
    name: Section(
        f"all rows of {USERS} users of ml-100k, {longest} items of history",
        work_of(longest),
        {"rows per step": BATCH},
        (Goal(APART, TRUNKS, 5.0), Goal(CUT, TRUNKS, 3.0)),
        facts_of(longest),
    )
    for name, longest in SIZES.items()
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
