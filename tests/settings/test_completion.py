"""What a shell completes, asked of a real one; and what --help says of a model."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from recbole_llm.experiment.command import VERBS
from recbole_llm.quick_start import main
from recbole_llm.registry import choices
from recbole_llm.settings.completion import completion
from recbole_llm.settings.help import WIDTH, help_text
from recbole_llm.settings.models import model_names
from tests.refusals import refused

BASH = shutil.which("bash")


def completed(line: str, word_breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """What bash offers behind a line."""
    words = line.replace("=", " = ").split() if "=" in word_breaks else line.split()
    n_before = len(words) - (not line.endswith(" "))
    asked = f"""
        COMP_WORDBREAKS={_quoted(word_breaks)} COMP_LINE={_quoted(line)} COMP_POINT={len(line)} COMP_CWORD={n_before}
        _recbole_llm
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    script = completion("bash", VERBS) + asked
    done = subprocess.run([str(BASH), "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash")


@needs_bash
def test_models_are_completed_one_after_the_other():
    assert completed("recbole-llm --model=") == model_names()
    assert completed("recbole-llm --model=SOF") == ["SOFT"]
    assert completed("recbole-llm --model=Pop,SASRec,BIG") == ["Pop,SASRec,BIGRec"]
    assert completed("recbole-llm tune --model=GRU4RecK") == ["GRU4RecKG"]
    assert completed("recbole-llm --model=Nothing") == []


@needs_bash
def test_a_word_that_is_not_cut_at_its_equals_sign_is_completed_as_a_whole():
    assert completed("recbole-llm --model=Pop,BIG", word_breaks=" \t\n") == ["--model=Pop,BIGRec"]


@needs_bash
def test_verbs_settings_and_choices_are_completed():
    assert completed("recbole-llm ") == sorted(VERBS)
    assert completed("recbole-llm re") == ["recommend"]
    assert completed("recbole-llm --model=Pop re") == []
    assert completed("recbole-llm --lora_r") == ["--lora_r=", "--lora_rank_rule="]
    assert completed("recbole-llm --qui") == ["--quiet"]
    assert completed("recbole-llm --model=BIGRec --coreset=") == list(choices("coreset"))
    assert completed("recbole-llm --first_line=T") == ["True"]
    assert completed("recbole-llm --num_beams=") == []


@needs_bash
def test_the_command_prints_the_script(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion("bash", VERBS)
    assert main(["completion", "--help"]) == 0 and "bashrc" in capsys.readouterr().out
    assert main(["completion"]) == 2 and main(["completion", "bash", "fish"]) == 2
    with refused("completion", "unknown", "'fish'.*give bash"):
        completion("fish", VERBS)


def test_help_tells_what_a_model_is_and_sets():
    text = help_text("soft")
    assert (
        text.startswith("SOFT: self-distillation")
        and "BIGRec with curriculum=adaptive, alpha=[100, 10, 1, 0.1]" in text
    )
    assert "SOFT.yaml" in text and "\n--scft_loss (" in text  # the settings that hold the word stand below
    assert help_text("SASRec").startswith("SASRec: RecBole's\n    sets n_layers=2")
    assert "No setting" not in help_text("TALLRec") and "No setting" in help_text("TALLRecc")
    assert "did you mean TALLRec" in help_text("TALLRecc")
    for name in model_names():
        assert help_text(name).partition(":")[0].replace("-", "") == name


def test_the_lists_of_help_fit_a_terminal():
    below = help_text().partition("LLM models:")[2]
    assert max(map(len, below.splitlines())) <= WIDTH
    assert all(name in below for axis in ("coreset", "adapter") for name in choices(axis))
