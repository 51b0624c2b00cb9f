"""Mistakes of the user: one line that names the thing and the remedy, exit status 2, no traceback."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from tests.families import make_tokenizer, save_family
from tests.worlds import make_world

ERROR = "recbole-llm: error: "


@pytest.fixture
def fails(command: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and give its error without the program's name."""

    def run(models: str, *words: str, **where: Path) -> str:
        finished = command(models, *words, **where)
        captured = capsys.readouterr()
        lines = captured.err.rstrip("\n").split("\n")
        assert finished.status == 2 and finished.results is None and captured.out == ""
        assert "Traceback" not in captured.err
        assert [line.startswith(ERROR) for line in lines].count(True) == 1 and lines[-1].startswith(ERROR)
        return lines[-1].removeprefix(ERROR)

    return run


@pytest.mark.parametrize(
    ("models", "words", "message"),
    [
        ("BIGrec", [], "there is no model named 'BIGrec'; did you mean BIGRec"),
        ("Pop", ["--dataset=wrold"], "no data set 'wrold' in .*; found there: world; did you mean world"),
        ("Pop", ["--data_path=/nowhere/at/all"], "the folder /nowhere/at/all does not exist; set data_path"),
        ("BIGRec", ["--lora_target_modules=[qq_proj]"], "lora_target_modules: 'qq_proj' is not a linear layer"),
        ("BIGRec", ["--prompt_style=chat"], "prompt_style: .*no chat template; choose alpaca or plain"),
        ("BIGRec", ["--max_prompt_tokens=20"], "max_prompt_tokens: 20 is too short .*at least \\d+; raise it"),
        ("Pop", ["--user_inter_num_interval=[1000,inf)"], "dataset: 'world'"),
    ],
)
def test_a_mistake_is_printed_in_one_line(fails, models, words, message):
    """Those that only a running command finds; the others are in ``refused_commands.txt``."""
    assert re.search(message, fails(models, *words))


def test_nothing_is_computed_before_a_mistake_is_found(fails, saved, side_by_side):
    """Mistakes that only the LLM model's rooms can see are found before the LLM is tuned."""
    before = {path.name for path in (saved / "stages").iterdir()}
    fails("BIGRec", "--faiss_index=Flatt", "--seed=99")
    fails("BIGRec", "--eval_args={split: {LS: test_only}}", "--reweight=popularity", "--seed=99", "--stopping_step=0")
    fails("SOFT", "--sd_file=absent.jsonl", "--seed=99")
    fails("SOFT", "--eval_args={split: {LS: test_only}}", "--alpha=[10, 1]", "--seed=99", "--stopping_step=0")
    fails("BIGRec", "--curriculum=fixed:1.5", "--seed=99")
    after = {path.name for path in (saved / "stages").iterdir()}
    assert not any(name.startswith(("fine-tune", ".fine-tune")) for name in after - before)


# ------------------------------------------------------------------------------------------------------------ LLMs


def without_config(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")


def encoder(folder: Path) -> None:
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8).save_pretrained(folder)
    make_tokenizer("llama").save_pretrained(folder)


def without_weights(folder: Path) -> None:
    save_family("llama", folder)
    next(folder.glob("*.safetensors")).unlink()


def without_eos(folder: Path) -> None:
    save_family("llama", folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            content.pop("eos_token", None)
            (folder / name).write_text(json.dumps(content))


def without_tokenizer(folder: Path) -> None:
    save_family("llama", folder)
    for file in folder.glob("*token*"):
        file.unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "there is no such folder; give an existing folder, a hub name, or 'tiny'"),
        (without_config, "the folder has no config.json; give a folder made by save_pretrained"),
        (encoder, "model type 'bert' is not a causal language model; give one that AutoModelForCausalLM loads"),
        (without_weights, "the weights cannot be loaded: .*; fetch or save the model again"),
        (without_eos, "the tokenizer has no EOS token, so no answer could end; name one in tokenizer_config.json"),
        (without_tokenizer, "the folder has no tokenizer"),
    ],
)
def test_an_llm_that_cannot_be_used_is_named(fails, saved, tmp_path, make, message):
    folder = tmp_path / "llm"
    make(folder)
    before = set(saved.iterdir())
    error = fails("Pop,BIGRec", f"--llm_path={folder}")
    assert str(folder) in error and re.search(message, error)
    trained = {path.name for path in set(saved.iterdir()) - before if path.name.startswith("Pop-")}
    assert bool(trained) == (make is without_weights)  # the rest is known before the first model trains


# ----------------------------------------------------------------------------------------------------- data, folders


def test_a_data_set_whose_titles_are_all_empty(fails, tmp_path):
    folder = make_world(tmp_path / "blank", n_users=6, n_items=10)
    lines = (folder / "blank.item").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    text = "\n".join([lines[0], *("\t".join([row[0], "", *row[2:]]) for row in cells[1:])])
    (folder / "blank.item").write_text(text + "\n")
    error = fails("BIGRec", world=folder)
    assert "every title of item field 'title' of data set 'blank' is empty; set it to an item field" in error


def test_a_data_set_without_item_file(fails, tmp_path):
    folder = make_world(tmp_path / "bare", n_users=6, n_items=10)
    (folder / "bare.item").unlink()
    assert re.search("title_field: data set 'bare' has no item field 'title'", fails("BIGRec", world=folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs: [1", "the config file .*bad.yaml is not valid YAML"),
        (b"- epochs", "the config file .*bad.yaml must hold `key: value` pairs"),
        (b"\xff\xfe\x00", "the config file .*bad.yaml is not valid YAML"),
        (b"epoch: 1", "config file .*bad.yaml: epoch is not a setting of BIGRec; did you mean epochs"),
        (b"lora_r: lots", "lora_r: 'lots' is not allowed; give an integer >= 1"),
    ],
)
def test_a_config_file_that_cannot_be_used(fails, tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    assert re.search(message, fails("BIGRec", f"--config_files={file}"))


def test_a_config_file_for_one_model_does_not_trouble_another(command, tmp_path):
    (tmp_path / "few.yaml").write_text("lora_r: 2\nBIGRec.num_beams: 1\n")
    assert command("Pop,BIGRec", f"--config_files={tmp_path / 'few.yaml'}", "--epochs=0").status == 0


def test_a_checkpoint_dir_that_is_a_file(fails, tmp_path):
    (tmp_path / "file").write_text("")
    error = fails("Pop", f"--checkpoint_dir={tmp_path / 'file'}")
    assert re.search("checkpoint_dir: cannot write to .*file .*; set another one", error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_checkpoint_dir_that_may_not_be_written(fails, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    error = fails("Pop", f"--checkpoint_dir={tmp_path / 'closed' / 'saved'}")
    assert re.search("checkpoint_dir: cannot write to .*closed/saved .*; set another one", error)


def test_an_environment_of_several_processes_that_no_launcher_gives(fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert re.search("WORLD_SIZE: 2 processes, but RANK is not set; start with accelerate launch", fails("Pop"))
