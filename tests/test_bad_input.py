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
        ("Zzz", [], "there is no model named 'Zzz'; LLM models: BIGRec"),
        ("Pop", ["--dataset=wrold"], "no data set 'wrold' in .*; found there: world; did you mean world"),
        ("Pop", ["--data_path=/nowhere/at/all"], "the folder /nowhere/at/all does not exist; set data_path"),
        ("BIGRec", ["--title_field=name"], "title_field: .* has no item field 'name' .*; name one of them"),
        ("BIGRec", ["--title_with=year"], "title_with: .* has no item field 'year'"),
        ("Pop", ["--user_inter_num_interval=many"], "user_inter_num_interval: 'many' is not allowed; give text like"),
        ("BIGRec", ["--domain=moive"], "domain: there are no words for 'moive'; choose one of .*movie"),
        ("BIGRec", ["--faiss_index=Flatt"], "faiss refuses the index 'Flatt'.*use 'Flat' \\(exact\\)"),
        ("BIGRec", ["--recommender=SASRek"], "recommender: RecBole has no model named 'SASRek'; did you mean SASRec"),
        ("BIGRec", ["--adapter=lorra"], "adapter: 'lorra' is not allowed; give one of lora, .*full"),
        ("BIGRec", ["--lora_target_modules=[qq_proj]"], "qq_proj"),
        ("BIGRec", ["--prompt_style=chat"], "prompt_style: .*no chat template; choose alpaca or plain"),
        ("BIGRec", ["--max_prompt_tokens=20"], "max_prompt_tokens: 20 is too short .*at least \\d+; raise it"),
        ("BIGRec", ["--lora_rank=4"], "--lora_rank is no setting of BIGRec; did you mean lora_r"),
        ("Pop,BIGRec", ["--Pop.lora_r=4"], "Pop.lora_r is no setting of Pop"),
        ("BIGRec", ["--epochs=many"], "epochs: 'many' is not allowed; give an integer >= 0"),
        ("BIGRec", ["--epochs=-1"], "epochs: -1 is not allowed; give an integer >= 0"),
        ("BIGRec", ["--lora_dropout=1.0"], "lora_dropout: 1.0 is not allowed; give a number >= 0 and < 1"),
        ("BIGRec", ["--seed=0.5"], "seed: 0.5 is not allowed; give an integer"),
        ("Pop", ["--topk=0"], "topk: 0 is not allowed; give an integer >= 1 or a list of them"),
        ("SASRec", ["--topk=[5,-1]"], "topk: \\[5, -1\\] is not allowed"),
        ("BIGRec", ["--topk=0"], "topk: 0 is not allowed"),
        ("BIGRec", ["--valid_metric=NDCG@7"], "valid_metric: 'NDCG@7' is not computed by metrics and topk"),
        ("BIGRec", ["--metrics=[NDGC]"], "metrics: there is no metric named 'NDGC'; did you mean NDCG"),
        ("BIGRec", ["--learner=sparse_adam"], "learner: .*choose adamw"),
        ("BIGRec", ["--state=LOUD"], "state: there is no log level 'LOUD'; choose one of DEBUG, INFO"),
        ("BIGRec", ["--tiny_hidden_size=30"], "tiny_hidden_size: 30 .* multiple .*tiny_n_heads.*; change one"),
        ("BIGRec", ["--eval_args={split: {LS: test_only}}"], "stopping_step: .*no validation rows.*--stopping_step=0"),
        (
            "BIGRec",
            ["--eval_args={split: {LS: test_only}}", "--reweight=popularity", "--epochs=0"],
            "gamma: it is searched on .* validation rows; set --gamma=<number>",
        ),
        ("BIGRec", ["--eval_args={mode: uni5}", "--reweight=popularity"], "gamma: .*full ranking.*set --gamma"),
        ("BIGRec", ["--grounding=likelyhood"], "grounding: .*give one of embedding, constrained, likelihood"),
        (
            "BIGRec",
            ["--grounding=constrained", "--num_beams=4", "--topk=[1,10]"],
            "topk: 4 constrained beams do not rank 10 items; set --num_beams=10",
        ),
        (
            "BIGRec",
            ["--grounding=constrained", "--num_beams=10", "--eval_args={mode: uni5}"],
            "eval_args: mode: uni5: constrained beams .*; set mode: full, or --grounding=likelihood",
        ),
        (
            "SOFT",
            ["--grounding=likelihood", "--reweight=popularity"],
            "reweight: needs distances, which grounding=likelihood does not compute; set --reweight=none, or "
            "--grounding=embedding",
        ),
        ("BIGRec", ["--faiss_search=nprobe=8"], "faiss_search: 'nprobe=8' is of an approximate index, .*; leave"),
        ("BIGRec", ["--lm_weight=0.5"], "lm_weight: .*titles; set --grounding=constrained or likelihood"),
        ("BIGRec", ["--lm_weight=1.5"], "lm_weight: 1.5 is not allowed; give a number >= 0 and <= 1"),
        ("SOFT", ["--alpha=-1"], "alpha: -1 is not allowed; give a number >= 0 or a list of them"),
        ("SOFT", ["--alpha=.nan"], "alpha: nan is not allowed; give a number >= 0 or a list of them"),
        ("SOFT", ["--alpha=.inf"], "alpha: inf is not allowed"),
        ("SOFT", ["--alpha=many"], "alpha: 'many' is not allowed"),
        ("SOFT", ["--alpha=[1, -0.1]"], "alpha: \\[1, -0.1\\] is not allowed"),
        ("SOFT", ["--alpha=[]"], "alpha: \\[\\] is not allowed"),
        ("SOFT", ["--alpha=~"], "alpha: None is not allowed"),
        (
            "BIGRec",
            ["--curriculum=adaptiv"],
            "curriculum: 'adaptiv' .*give text like none, sd_only, adaptive or fixed:0.5",
        ),
        ("BIGRec", ["--curriculum=fixed"], "curriculum: 'fixed' is not allowed; give text like"),
        ("BIGRec", ["--curriculum=fixed:half"], "curriculum: 'fixed:half' is not allowed"),
        ("BIGRec", ["--curriculum=fixed:-0.5"], "curriculum: 'fixed:-0.5' is not allowed"),
        ("BIGRec", ["--curriculum=fixed:1.5"], "curriculum: 'fixed:1.5' is not allowed; .* a weight in \\[0, 1\\]"),
        ("SOFT", ["--distance_rows=0"], "distance_rows: 0 is not allowed; give an integer >= 1"),
        ("SOFT", ["--sd_select=best"], "sd_select: 'best' is not allowed; give one of top, nearest"),
        ("SOFT", ["--sd_empty=drop"], "sd_empty: 'drop' is not allowed; give one of real, keep"),
        ("SOFT", ["--sd_permuted=maybe"], "sd_permuted: 'maybe' is not allowed; give True or False"),
        (
            "SOFT",
            ["--sd_file=absent.jsonl"],
            "sd_file: absent.jsonl cannot be read \\(No such file .*; set the right one",
        ),
        ("SOFT", ["--llm_recommender=SASRec"], "no llm_recommender named 'SASRec'; choose from: BIGRec"),
        ("BIGRec", ["--clip_grad_norm={norm: 1.0}"], "clip_grad_norm: .*give {'max_norm': <a number > 0>}, or ~"),
        ("BIGRec", ["--clip_grad_norm={max_norm: 0}"], "clip_grad_norm: .*give {'max_norm'"),
        ("BIGRec", ["--seed=abc"], "seed: 'abc' is not allowed; give an integer >= 0 and <= 4294967295"),
        ("Pop", ["--curriculum=adaptive"], "--curriculum is no setting of Pop"),
        ("Pop,SOFT", ["--Pop.alpha=1"], "Pop.alpha is no setting of Pop"),
        ("SOFT", ["--eval_args={split: {LS: test_only}}"], "stopping_step: .*no validation rows.*--stopping_step=0"),
        (
            "SOFT",
            ["--eval_args={split: {LS: test_only}}", "--stopping_step=0", "--alpha=[10, 1]"],
            "alpha: there are no validation rows to choose one of several by; give one",
        ),
        (
            "SOFT",
            ["--eval_step=0", "--alpha=[10, 1]"],
            "alpha: a list of values, but no epoch is validated; give one value or set eval_step",
        ),
        ("SOFT", ["--eval_step=3", "--alpha=[10, 1]"], "alpha: a list of values, but no epoch is validated"),
        ("iLoRA", ["--lora_r=6"], "rank r = 6 into num_experts = 4 equal parts; make lora_r a multiple of il"),
        ("iLoRA", ["--ilora_num_experts=0"], "ilora_num_experts: 0 is not allowed; give an integer >= 1"),
        ("iLoRA", ["--ilora_gate=conv"], "ilora_gate: 'conv' is not allowed; give one of linear, mlp, topk, noisy"),
        ("iLoRA", ["--ilora_gate=topk", "--ilora_gate_top_k=5"], "gate_top_k = 5 must lie in 2 ... num_experts = 4"),
        ("iLoRA", ["--gate_lr_ratio=0"], "gate_lr_ratio: 0 is not allowed; give a number > 0"),
        ("iLoRA", ["--side_weight_decay=-1"], "side_weight_decay: -1 is not allowed; give a number >= 0"),
        ("iLoRA", ["--recommender=Caser"], "recommender: Caser gives no state of a sequence alone; choose SASRec or G"),
        ("LLaRA", ["--recommender=Pop"], "recommender: Pop has no item vectors; choose SASRec, GRU4Rec or Caser"),
        ("LLaRA", ["--recommender_config={hidden_sise: 8}"], "hidden_sise is no setting of SASRec"),
        ("LLaRA", ["--prompt_schedule=curriculum"], "prompt_schedule: 'curriculum' is not allowed; give one of direct"),
        ("LLaRA", ["--lr_floor=1"], "lr_floor: 1 is not allowed; give a number >= 0 and < 1"),
        ("LLaRA", ["--warmup_steps=1.5"], "warmup_steps: 1.5 is not allowed; give .* a decimal in \\[0, 1\\]"),
        ("LLaRA", ["--lr_scheduler=cos"], "lr_scheduler: 'cos' is not allowed; give one of linear, constant, cosine"),
        ("BIGRec", ["--config_files=absent.yaml"], "config file absent.yaml does not exist; give a path"),
        ("BIGRec", ["--epochs"], "--epochs has no value; write --epochs=value"),
        ("Pop", ["--user_inter_num_interval=[1000,inf)"], "dataset: 'world'"),
        ("Pop", ["--TIME_FIELD=when"], "TIME_FIELD: world.inter has no column 'when', it has user_id"),
    ],
)
def test_a_mistake_is_named_in_one_line(fails, models, words, message):
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
        (without_tokenizer, "the tokenizer cannot be loaded"),
    ],
)
def test_an_llm_that_cannot_be_used_is_named(fails, tmp_path, make, message):
    folder = tmp_path / "llm"
    make(folder)
    error = fails("BIGRec", f"--llm_path={folder}")
    assert str(folder) in error and re.search(message, error)


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
        (b"epoch: 1", "config file .*bad.yaml: epoch is no setting of BIGRec; did you mean epochs"),
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


def test_several_processes_are_refused(fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert re.search("WORLD_SIZE: the launcher started 2 processes", fails("Pop"))
