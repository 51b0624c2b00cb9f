"""A run that finds stages of a run with other settings ends as if it had computed everything itself."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.declare import Key
from recbole_llm.errors import InputError
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command
from recbole_llm.settings.declarations import llm_keys
from recbole_llm.settings.readers import unread
from recbole_llm.settings.values import write_setting
from tests.hostile.cases import tried
from tests.runs import Finished, run, words_for

pytestmark = pytest.mark.hostile
FEW = ("--train_sample_size=16", "--valid_sample_size=6", "--test_sample_size=6", "--recommender_config={epochs: 1}")
# Models with the words of the run whose stages are found; every stage is in one of them.
BASES: dict[str, tuple[str, ...]] = {
    "SOFT": ("--distance_rows=6", "--alpha=[1,10]"),
    "DEALRec": ("--coreset_size=6", "--recommender_config={epochs: 1}"),
    "GORACS": ("--coreset_size=6",),
    "BIGRec": ("--reweight=collaborative", "--recommender=SASRec", "--preference=sdpo", "--pref_epochs=1"),
    "iLoRA": ("--candidates=5",),
    "LLaRA": ("--objective=cft",),
    "TALLRec": (
        *("--threshold={'rating': 3}", "--valid_metric=AUC", "--coreset=grand", "--coreset_size=6"),
        "--llm_path=tiny",  # whose tokenizer has Yes and No
    ),
    "SemID": ("--num_beams=10",),
    "TTDS": ("--num_beams=10",),
    "SPRec": ("--pref_rounds=1", "--pref_round_rows=6"),
    "LLMEmb": ("--scft_steps=2",),
    "Laser": (),
}
ELSEWHERE = {  # of files, devices and packages, what only is told, and what decides by rounding alone
    "gradient_checkpointing",
    *("llm_path", "llm_revision", "quant", "attn_implementation", "callbacks", "trust_remote_code", "sd_file"),
    *("coreset_file", "show_progress", "probe", "checkpoint_minutes", "llm_dtype", "enable_amp"),
}


def others(key: Key, value: Any) -> list[Any]:
    """Other values of a setting, near the one it has."""
    found: list[Any] = [*key.setting.choices, *((None,) if key.null else ())]
    if isinstance(value, bool):
        found.append(not value)
    elif isinstance(value, int):
        found += [value + 1, value - 1, 2 * value]
    elif isinstance(value, float):
        found += [value / 2, value * 2, (value + 1) / 2]
    elif value is None:
        found += [1, 2, 0.5, True]
    return [other for other in found if other != value and key.accepts(other)]


@cache
def changes(model: str, world: Path, llm: Path) -> list[str]:
    """Words that change one setting which the model reads."""
    words = (f"--llm_path={llm}", *FEW, *BASES[model])
    (resolved,) = check_command(parse_command(words_for(model, world, Path("saved"), *words)))
    found = []
    for name, key in sorted(llm_keys().items()):
        if name not in ELSEWHERE and name in resolved.final:
            found += [f"--{name}={write_setting(name, value)}" for value in others(key, resolved.final[name])]
    return [word for word in found if is_read(word, words_for(model, world, Path("saved"), *words, word))]


def is_read(word: str, words: list[str]) -> bool:
    """Whether a command with it is accepted, and reads it."""
    try:
        command = parse_command(words)
        return not unread([word.partition("=")[0].removeprefix("--")], check_command(command))
    except InputError:
        return False


@pytest.fixture(scope="module")
def base(world: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``base("SOFT")``: the ``checkpoint_dir`` of a run of it, computed once."""

    @cache
    def computed(model: str) -> Path:
        saved = tmp_path_factory.mktemp(model) / "saved"
        assert run(model, world, saved, f"--llm_path={llama}", *FEW, *BASES[model]).status == 0
        return saved

    return computed


def told(finished: Finished, model: str) -> Any:
    """What a run is asked for: its metrics, and what each row got."""
    result = finished.result(model)
    rows = {file.name: file.read_text(encoding="utf-8") for file in finished.folders[model].glob("*.csv")}
    rows.pop("stage_table.csv", None)
    return dict(result.test), dict(result.valid), rows


@tried(60)
@given(st.data(), st.sampled_from(sorted(BASES)))
def test_what_is_found_is_what_would_be_computed(base, world, llama, tmp_path_factory, data, model):
    word = data.draw(st.sampled_from(changes(model, world, llama)))
    found, computed = (tmp_path_factory.mktemp(name) / "saved" for name in ("found", "computed"))
    shutil.copytree(base(model) / "stages", found / "stages")
    both = [run(model, world, saved, f"--llm_path={llama}", *FEW, *BASES[model], word) for saved in (found, computed)]
    assert both[0].status == both[1].status, word
    if both[0].status == 0:
        assert told(both[0], model) == told(both[1], model), word
    for saved in (found, computed):
        shutil.rmtree(saved)
