"""What refused commands say, word for word, and what kind of mistake it is."""

from __future__ import annotations

from typing import get_args

import pytest

from recbole_llm.callbacks import choice
from recbole_llm.errors import Kind
from recbole_llm.llm import settings as llm_settings
from recbole_llm.semantic_ids import solid_settings
from recbole_llm.settings import recommender_checks
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command
from tests.refusals import refused
from tests.wordings import Refused, refused_commands

FOUND_WHILE_RUNNING = {"numeric"}


@pytest.mark.parametrize("command", refused_commands(), ids=lambda command: command.line)
def test_what_a_refused_command_says(command: Refused) -> None:
    with refused(command.key, command.kind, command.pattern):
        check_command(parse_command(command.words))


def test_every_kind_of_mistake_is_among_them() -> None:
    assert {command.kind for command in refused_commands()} | FOUND_WHILE_RUNNING == set(get_args(Kind))


@pytest.mark.parametrize(
    ("where", "words", "key", "text"),
    [
        (
            recommender_checks,
            ["--model=Pop", "--log_wandb=True"],
            "log_wandb",
            "log_wandb: it needs the package wandb: pip install wandb, or set log_wandb: False",
        ),
        (
            choice,
            ["--model=Pop", "--callbacks=[mlflow, wandb]"],
            "callbacks",
            "callbacks: it needs the package mlflow: pip install mlflow, or leave it out",
        ),
        (
            solid_settings,
            ["--model=SOLID"],
            "semantic_source",
            "semantic_source: it needs the package faiss-cpu: pip install faiss-cpu, or set semantic_source: field",
        ),
        (
            llm_settings,
            ["--model=BIGRec", "--llm_path=some/llm", "--quant=8bit"],
            "quant",
            "quant: 8bit needs bitsandbytes, which is not installed; run `pip install bitsandbytes`",
        ),
    ],
)
def test_what_is_said_of_a_package_that_is_not_installed(monkeypatch, where, words, key, text) -> None:
    monkeypatch.setattr(where, "find_spec", lambda name: None)
    with refused(key, "environment", f"^{text}$"):
        check_command(parse_command([*words, "--dataset=ml-100k"]))
