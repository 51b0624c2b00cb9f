"""How many tokens share a pass: by the device's memory, and fewer once it has run out, with the same result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.llm import budget as module
from recbole_llm.llm.budget import (
    GENERATION_TOKENS,
    MOST_TOKENS,
    TRAINING_TOKENS,
    TokenBudget,
    bytes_per_token,
    is_out_of_memory,
    run_batches,
    tokens_that_fit,
)
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.likelihood import title_likelihoods
from recbole_llm.llm.trie import TitleTrie
from tests.architectures import ARCHITECTURES, make_architecture
from tests.families import make_family
from tests.members import in_threads

WORDS = ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: not enough memory: you tried ..."]


class Device:
    """Memory that runs out where a forward pass has more than so many tokens."""

    def __init__(self, model: nn.Module, most: int, error: BaseException) -> None:
        self.most, self.error, self.sizes, self.failed = most, error, list[int](), 0
        self.handle = model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, _module: nn.Module, _args: Any, kwargs: Any) -> None:
        ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
        size = len(ids) * (ids.shape[1] + (0 if cache is None else cache.get_seq_length()))
        if size > self.most:
            self.failed += 1
            raise self.error
        self.sizes.append(size)


def errors() -> list[BaseException]:
    return [torch.OutOfMemoryError(WORDS[0]), RuntimeError(WORDS[1]), MemoryError()]


@pytest.mark.parametrize("error", errors(), ids=["cuda", "cpu", "python"])
def test_generation_goes_on_in_halves_with_the_same_answers(error, caplog):
    model, tokenizer = make_family("llama")
    prompts = [tokenizer(f"Babe {'Toy Story ' * n}")["input_ids"] for n in range(1, 9)]
    options: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0, "num_beams": 3, "max_new_tokens": 5}
    usual = beam_search(model, prompts, **options)
    device, budget = Device(model, 150, error), TokenBudget(10_000, "generation_batch_tokens")
    with caplog.at_level(logging.WARNING):
        found = beam_search(model, prompts, max_batch_tokens=budget, **options)
    device.handle.remove()
    assert device.failed > 1 and 1 <= budget.tokens < 1000
    assert [own.token_ids for own in found] == [own.token_ids for own in usual]
    assert [own.score for own in found] == pytest.approx([own.score for own in usual], abs=1e-5)
    told = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("generation_batch_tokens: memory ran out at 1")
    failed = device.failed
    device = Device(model, 150, error)  # what was learned stays
    beam_search(model, prompts, max_batch_tokens=budget, **options)
    device.handle.remove()
    assert device.failed == 0 < failed


def test_embedding_and_likelihoods_too():
    model, tokenizer = make_family("llama")
    texts = [f"Babe {'Toy Story ' * n}" for n in range(8)]
    usual = TextEncoder(model, tokenizer).encode(texts)
    encoder = TextEncoder(model, tokenizer, max_batch_tokens=500)
    device = Device(model.get_decoder(), 60, errors()[0])
    found = encoder.encode(texts)
    device.handle.remove()
    assert device.failed and max(device.sizes) <= 60
    assert found == pytest.approx(usual, abs=1e-5)
    trie = TitleTrie([[20, 21, 22], [20, 23], [24]], eos_token_id=2)
    prompts = tokenizer(texts)["input_ids"]
    for way in ("tree", "rows"):
        options: dict[str, Any] = {"pad_token_id": 0, "way": way}
        expected = title_likelihoods(model, prompts, trie, **options)
        device = Device(model, 60, errors()[0])
        scores = title_likelihoods(model, prompts, trie, max_batch_tokens=1500, **options)
        device.handle.remove()
        assert device.failed
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_one_row_that_does_not_fit_is_an_error_and_so_are_others():
    def fails(_rows: list[int]) -> None:
        raise torch.OutOfMemoryError(WORDS[0])

    budget = TokenBudget(100)
    with pytest.raises(torch.OutOfMemoryError):
        run_batches([60, 60], budget, fails)
    assert budget.tokens == 100

    def breaks(_rows: list[int]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run_batches([1, 1], budget, breaks)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied")) and all(map(is_out_of_memory, errors()))


def test_every_row_is_run_once_and_batches_keep_to_the_budget():
    seen, budget = list[int](), TokenBudget(40)
    fails = iter([False, True, False, True, False, False, False, False, False])

    def run(rows: list[int]) -> None:
        assert len(rows) == 1 or len(rows) * max(costs[row] for row in rows) <= budget.tokens
        if next(fails, False) and len(rows) > 1:
            raise torch.OutOfMemoryError(WORDS[0])
        seen.extend(rows)

    costs = [3, 9, 4, 7, 8, 2, 6, 5, 1, 10]
    run_batches(costs, budget, run)
    assert sorted(seen) == list(range(10)) and budget.tokens < 40


def small(**sizes: int) -> LlamaForCausalLM:
    common = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**common, "num_hidden_layers": 2, **sizes}))


def test_tokens_go_by_free_memory_and_the_sizes_of_the_model(monkeypatch):
    model = small()
    free = {"bytes": 10**6}
    monkeypatch.setattr(module, "free_memory", lambda device: free["bytes"])
    few = tokens_that_fit(model)
    assert 1 <= few < GENERATION_TOKENS and few == int(0.7 * 10**6) // bytes_per_token(model)
    free["bytes"] = 2 * 10**6
    assert tokens_that_fit(model) == pytest.approx(2 * few, abs=2)
    free["bytes"] = 10**12
    assert tokens_that_fit(model) == 8192 and tokens_that_fit(model, training=True) == 4096  # a CPU gains no more
    monkeypatch.setattr(module, "device_of", lambda _model: torch.device("meta"))
    assert tokens_that_fit(model) == MOST_TOKENS
    free["bytes"] = 0
    assert tokens_that_fit(model) == 1
    monkeypatch.setattr(module, "free_memory", lambda device: None)
    assert tokens_that_fit(model) == 8192


def test_a_token_takes_more_where_there_is_more_to_keep():
    model = small()
    usual, trained = bytes_per_token(model), bytes_per_token(model, training=True)
    assert bytes_per_token(small(num_hidden_layers=4)) > usual < bytes_per_token(small(vocab_size=640))
    assert bytes_per_token(small(num_hidden_layers=8), training=True) > 3 * trained
    assert bytes_per_token(small().to(torch.bfloat16)) < usual
    deep = small(num_hidden_layers=8)
    before = bytes_per_token(deep, training=True)
    deep.gradient_checkpointing_enable({"use_reentrant": False})
    assert bytes_per_token(deep, training=True) < before / 2


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_an_estimate(name):
    with torch.device("meta"):
        model = make_architecture(name)
    assert 0 < bytes_per_token(model) < 10**6 and 0 < bytes_per_token(model, training=True) < 10**7


def test_memory_of_linux_and_of_a_container(tmp_path: Path):
    assert module._free_main_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert module._free_main_memory(tmp_path) == 4000 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1024\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("3072\n")
    assert module._free_main_memory(tmp_path) == 2048
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert module._free_main_memory(tmp_path) == 4000 * 1024


def test_free_memory_is_that_of_the_device_and_of_another_kind_unknown(monkeypatch):
    monkeypatch.setattr(module, "_free_main_memory", lambda: 123)
    assert module.free_memory(torch.device("cpu")) == 123
    assert module.free_memory(torch.device("meta")) is None


@pytest.mark.parametrize(("training", "usual"), [(False, GENERATION_TOKENS), (True, TRAINING_TOKENS)])
def test_auto_is_what_fits_and_the_log_says_so_where_that_is_less_than_usual(training, usual, monkeypatch, caplog):
    model, free = small(), {"bytes": 10**6}
    monkeypatch.setattr(module, "free_memory", lambda device: free["bytes"])
    with caplog.at_level(logging.INFO):
        budget = TokenBudget.of_setting("max_tokens", "auto", model, training)
    assert budget.tokens == tokens_that_fit(model, training) < usual
    assert caplog.messages == [f"max_tokens: auto is {budget.tokens:,} tokens on this device."]
    free["bytes"] = 10**12
    caplog.clear()
    with caplog.at_level(logging.INFO):
        budget = TokenBudget.of_setting("max_tokens", "auto", model, training)
    assert (budget.tokens, caplog.messages) == (usual, [])


def test_where_one_process_runs_out_all_run_anew_with_its_smaller_budget(caplog):
    """The one whose memory ran out says so, and so does one that only follows; then neither is asked any more."""

    def member() -> tuple[list[bool], int, int]:
        rank = module.process().rank
        budget, runs = TokenBudget(100, f"tokens of process {rank}"), 0

        def run() -> None:
            nonlocal runs
            runs += 1
            if rank == 1 and budget.tokens > 60:
                raise torch.OutOfMemoryError(WORDS[0])

        done = [budget.attempt_together(run, 100, divisible=True) for _ in range(2)]
        return done, budget.tokens, runs

    with caplog.at_level(logging.WARNING):
        assert in_threads(2, [module], member) == [([False, True], 50, 2)] * 2
    ends = "memory ran out at 100 tokens of a pass: going on with 50; the result is the same."
    assert sorted(caplog.messages) == [f"tokens of process {rank}: {ends}" for rank in (0, 1)]


def test_a_number_is_taken_as_it_is():
    assert TokenBudget.of_setting("micro_batch_tokens", 77, nn.Linear(1, 1)).tokens == 77
