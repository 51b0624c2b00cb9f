"""What weights that are dealt out (FSDP) cannot train is refused from the settings alone, and nothing else is."""

from __future__ import annotations

import pytest

from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command
from tests.processes import fresh_python
from tests.refusals import refused

FSDP = {"WORLD_SIZE": "2", "RANK": "0", "ACCELERATE_USE_FSDP": "true"}


def check(*words: str) -> None:
    check_command(parse_command([*words, "--dataset=ml-100k"]))


@pytest.fixture
def dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--model=MSL"], "objective"),
        (["--model=CFT"], "objective"),
        (["--model=BIGRec", "--preference=dpo"], "preference"),
        (["--model=BIGRec", "--preference=dpo", "--epochs=0"], "preference"),
        (["--model=SPRec"], "preference"),
        (["--model=iLoRA", "--llm_recommender=BIGRec"], "adapter"),
        (["--model=MoSARA"], "adapter"),
        (["--model=LLaRA"], "model"),
        (["--model=TTDS"], "model"),
        (["--model=SemID"], "model"),
        (["--model=SASRec,BIGRec", "--BIGRec.quant=8bit", "--use_gpu=True"], "quant"),
    ],
)
def test_what_needs_whole_weights_is_refused_where_they_are_dealt_out(dealt_out, words, key):
    with refused(key, "conflict", "needs the whole LLM in every process; start without FSDP"):
        check(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["--model=BIGRec", "--adapter=full"],
        ["--model=SOFT"],
        ["--model=LLaRA", "--epochs=0"],  # which trains nothing
        ["--model=Laser"],  # whose LLM learns nothing
        ["--model=SASRec,SAR"],
    ],
)
def test_what_they_can_train_passes(dealt_out, words):
    check(*words)


def test_one_process_deals_nothing_out(dealt_out, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check("--model=SPRec")


def test_the_refusal_imports_no_torch():
    code = """
        import sys
        from recbole_llm.errors import InputError
        from recbole_llm.settings.check import check_command
        from recbole_llm.settings.command import parse_command
        try:
            check_command(parse_command(["--model=CFT", "--dataset=ml-100k"]))
        except InputError as error:
            print(error.key, "torch" in sys.modules)
    """
    assert fresh_python(code=code, env=FSDP).stdout.strip() == "objective False"
