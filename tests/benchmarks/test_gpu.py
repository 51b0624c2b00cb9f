"""The benchmark for a GPU, tried at CPU sizes: both procedures do the same work, and what is missing is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


def test_the_whole_script_at_small_sizes(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    gpu.main(["--size=tiny", "--device=cpu", "--steps=2", "--repeats=1", f"--json={tmp_path / 'gpu.json'}"])
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["procedures"]) == {"tuning", "generation", "generate"}
    assert all(own["tokens per second"] > 0 and own["peak MiB"] > 0 for own in found["procedures"].values())
    assert found["notes"] == [gpu.NO_TRL] and gpu.NO_TRL in printed and "| tuning |" in printed
    assert found["setting"]["device"] == "cpu" and found["setting"]["number type"] == "float32"


def test_both_searches_find_the_same_answers():
    bench = gpu.Bench("tiny", CPU, steps=1, beams=3)
    ours, theirs = bench.generation()[0](), bench.generate()[0]()
    assert ours == theirs and all(len(own) == bench.n_new for own in ours)  # type: ignore[attr-defined]


def test_tuning_moves_the_weights_and_counts_its_tokens(monkeypatch):
    bench = gpu.Bench("tiny", CPU, steps=3, beams=1)
    models = []
    attach = gpu.LoraAdapter.attach
    monkeypatch.setattr(gpu.LoraAdapter, "attach", lambda self, model: models.append(attach(self, model)) or models[0])
    run, n_tokens = bench.tuning()
    run()
    assert n_tokens == 3 * sum(len(p) + len(a) for p, a in zip(bench.prompts, bench.answers, strict=True))
    assert any(weight.any() for name, weight in models[0].named_parameters() if "lora_B" in name)
    assert bench.budgets["tuning"] > 0


def test_the_librarys_trainer_is_given_the_same_rows_and_steps(monkeypatch):
    """A stand-in for trl, which is not installed for tests."""
    given: dict[str, Any] = {}

    class Trainer:
        def __init__(self, model: Any, **options: Any) -> None:
            given.update(options, model=model)

        def train(self) -> None:
            given["trained"] = given.get("trained", 0) + 1

    trl = SimpleNamespace(SFTTrainer=Trainer, SFTConfig=lambda **options: SimpleNamespace(**options))
    monkeypatch.setitem(sys.modules, "trl", trl)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=SimpleNamespace(from_list=list)))
    bench = gpu.Bench("tiny", CPU, steps=2, beams=1)
    bench.budgets["tuning"] = 120
    run, n_tokens = bench.sft_trainer()
    run()
    tokenizer, config = given["processing_class"], given["args"]
    for row, prompt, answer in zip(given["train_dataset"], bench.prompts, bench.answers, strict=True):
        found = tokenizer(row["prompt"] + row["completion"] + f" {tokenizer.eos_token}")["input_ids"]
        assert found == [*prompt, *answer]
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == len(bench.prompts)
    assert config.per_device_train_batch_size == 2 and config.max_steps == 2 and given["trained"] == 1
    assert n_tokens == bench.tuning()[1] and bench.own_seconds > 0


def test_the_real_size_is_that_of_the_model():
    with torch.device("meta"):
        model = gpu.LlamaForCausalLM(gpu.LlamaConfig(**gpu.SIZES["llama-3.2-3b"]))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(3.21e9, rel=0.005)


def test_words_are_tokens():
    tokenizer = gpu.word_tokenizer(gpu.word_names(30))
    assert tokenizer("t5 t23 t7 </s>")["input_ids"] == [5, 23, 7, tokenizer.eos_token_id] and gpu.EOS == 2
