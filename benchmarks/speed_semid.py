"""Search for codes in a catalogue of 100,000 items: steps of the beams, and whole answers with the LLM.

    python -m benchmarks.speed_semid [--sections step,renormalized,search] [--repeats 7] [--json out.json]

Items have three codes of 256 and a counter, made of random vectors by residual k-means. A ``step`` is what stands
between two forward passes: from the logits of all beams to the best extensions of each prompt, with probabilities among
the whole vocabulary, whose log-softmax both procedures compute; in ``renormalized`` they are those among the allowed
tokens. ``search`` is the answer to prompts by a small LLM, beams and ranked items, in one call. The other procedure is
the processor of ``transformers`` that asks a Python function of every beam which tokens may follow, here a look-up in a
dictionary of all beginnings. How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor

from benchmarks.harness import Goal, Section, Work, main, random_llama
from recbole_llm.llm import TitleConstraint, TitleTrie, beam_search, search_titles
from recbole_llm.semantic_ids.settings import CodeSettings
from recbole_llm.semantic_ids.table import Quantiser, standardised, unique_codes

ITEMS, WIDTH, OWN_TOKENS, EOS = 100_000, 16, 4_096, 2
PROMPTS, BEAMS, PROMPT = 16, 20, 40
STEP_LOOP, STEP_OURS = "Python callback per beam (transformers), steps", "TitleConstraint.candidates, steps"
OWN_LOOP, OWN_OURS = f"{STEP_LOOP}, renormalized", f"{STEP_OURS}, renormalized"
SEARCH_LOOP, SEARCH_OURS = "beam search with the callback", "search_titles"


@cache
def catalogue() -> tuple[TitleTrie, np.ndarray]:
    """The trie of all codes, and the codes as tokens int64 [items, 4]."""
    vectors = standardised(np.random.default_rng(0).normal(size=(ITEMS, WIDTH)))
    settings = CodeSettings()
    fitted = Quantiser.fit(vectors[:: ITEMS // 20_000], settings, seed=0)
    codes = unique_codes(fitted.codes(vectors))
    n_codes = fitted.codebooks.shape[1]
    tokens = OWN_TOKENS + codes + n_codes * np.arange(codes.shape[1])
    return TitleTrie(tokens.tolist(), EOS), tokens


@cache
def vocabulary() -> int:
    """Tokens of the LLM and of the codes."""
    return int(catalogue()[1].max()) + 1


def callback() -> Any:
    """The processor that asks a Python function of every beam."""
    following: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for code in catalogue()[1].tolist():
        whole = [*code, EOS]
        for length, token in enumerate(whole):
            following[tuple(whole[:length])].add(token)
    allowed = {prefix: sorted(found) for prefix, found in following.items()}
    return PrefixConstrainedLogitsProcessor(lambda _, tokens: allowed.get(tuple(tokens.tolist()), [EOS]), 1)


def best(scores: Tensor) -> Tensor:
    """The best 2 * beams extensions of each prompt."""
    found = scores.view(PROMPTS, -1)
    return found.topk(min(2 * BEAMS, found.shape[1]), dim=1).values


def random_beams() -> tuple[Tensor, Tensor]:
    """Random codes, int64 [beams, 4], and logits behind their beginnings, [beams, vocabulary]."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(PROMPTS * BEAMS, vocabulary(), generator=generator)
    chosen = torch.randint(ITEMS, (PROMPTS * BEAMS,), generator=generator)
    return torch.from_numpy(catalogue()[1])[chosen], logits


def step_work(renormalize: bool) -> Work:
    """The steps of a search in which every beam is the beginning of a random code.

    Args:
        renormalize: whether probabilities are those among the allowed tokens.
    """
    beams, logits = random_beams()
    constraint, processor = TitleConstraint(catalogue()[0], renormalize=renormalize), LogitsProcessorList([callback()])
    steps = range(1, beams.shape[1] + 1)

    def asked(tokens: Tensor) -> Tensor:
        if renormalize:
            return processor(tokens, logits).log_softmax(dim=1)
        return processor(tokens, logits.log_softmax(dim=1))

    return {
        OWN_LOOP if renormalize else STEP_LOOP: lambda: [best(asked(beams[:, :n])) for n in steps],
        OWN_OURS if renormalize else STEP_OURS: lambda: [
            best(constraint.candidates(beams[:, :n], logits)[0]) for n in steps
        ],
    }


def same_extensions(results: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Both find the same extensions, as far as there are so many; also says how large the tree is."""
    for loop, ours in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, loop[:, : ours.shape[1]], atol=1e-4, rtol=1e-5)
    trie, tokens = catalogue()
    return {"items": len(tokens), "nodes of the tree": trie.n_nodes}


def search_work() -> Work:
    """Answers of a small LLM: the best items of each prompt and their scores."""
    trie, _ = catalogue()
    model = random_llama(width=64, layers=2, vocabulary=vocabulary()).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, vocabulary(), (PROMPTS, PROMPT), generator=generator).tolist()
    processor = LogitsProcessorList([callback()])
    options: dict[str, Any] = {"num_beams": BEAMS, "pad_token_id": 0, "length_penalty": 0.0}

    def by_callback() -> list[list[float]]:
        found = beam_search(
            model,
            prompts,
            eos_token_id=EOS,
            max_new_tokens=trie.max_length,
            logits_processor=processor,
            return_beams=True,
            **options,
        )
        return [[beam.score for beam in one.beams] for one in found]

    def ours() -> list[list[float]]:
        return [[beam.score for beam in found] for found in search_titles(model, prompts, trie, **options)]

    return {SEARCH_LOOP: by_callback, SEARCH_OURS: ours}


def same_scores(results: dict[str, list[list[float]]]) -> None:
    """Both find beams of the same scores."""
    for loop, ours in zip(*results.values(), strict=True):
        np.testing.assert_allclose(ours, loop, atol=1e-3)


SETTING = {"prompts": PROMPTS, "beams": BEAMS, "levels": CodeSettings().levels, "codes": 256}
SECTIONS = {
    "step": Section(
        "steps of a search among codes, without the LLM",
        partial(step_work, renormalize=False),
        SETTING,
        (Goal(STEP_LOOP, STEP_OURS, 10.0),),
        same_extensions,
    ),
    "renormalized": Section(
        "the same, probabilities among the allowed tokens",
        partial(step_work, renormalize=True),
        SETTING,
        (Goal(OWN_LOOP, OWN_OURS, 10.0),),
        same_extensions,
    ),
    "search": Section(
        "answers among codes by an LLM of 2 layers, width 64",
        search_work,
        {**SETTING, "prompt": PROMPT},
        (Goal(SEARCH_LOOP, SEARCH_OURS, 1.0),),
        same_scores,
    ),
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
