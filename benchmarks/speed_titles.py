"""Decoding over the titles of ml-100k: a step of constrained beam search, and the likelihood of every title.

    python -m benchmarks.speed_titles [--sections step-4k,step-32k,catalogue] [--repeats 7] [--json out.json]

A ``step`` is what stands between two forward passes of a constrained beam search: from the logits of all beams to the
best extensions of each prompt. Probabilities are those among the whole vocabulary, 4,096 tokens of the tiny LLM or
32,000 of Llama 2; normalising them is a part of every step. ``catalogue`` scores all titles after one prompt. How time
and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from benchmarks.harness import Goal, Section, Work, main
from recbole_llm.llm import TinyLLMConfig, TitleConstraint, TitleTrie, answer_log_probs, title_likelihoods
from recbole_llm.llm.rows import length_batches
from recbole_llm.llm.tiny import init_model, train_tokenizer
from recbole_llm.property_files import recbole_folder

PROMPTS, BEAMS, N_STEPS = 16, 20, 12
VOCABULARIES = {"step-4k": 4_096, "step-32k": 32_000}
PROMPT, BATCH_TOKENS = 192, 8192
LOOP, PROCESSOR, CANDIDATES = "Python loop over beams (transformers)", "TitleConstraint in generate", "search_titles"
ROWS, CACHED, TRIE = "one row per title", "one row per title, prompt computed once", "title_likelihoods"


@cache
def titles_of_ml_100k() -> tuple[Any, TitleTrie, list[list[int]]]:
    """A tokenizer trained on the titles of RecBole's copy, their trie, and their tokens, each title once."""
    file = recbole_folder() / "dataset_example" / "ml-100k" / "ml-100k.item"
    with open(file, encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        titles = [f"{title} ({year})" for _, title, year, *_ in list(rows)[1:]]
    tokenizer = train_tokenizer(titles, [], TinyLLMConfig())
    eos = tokenizer.eos_token_id
    responses = [tokenizer.encode(f'"{title}"', add_special_tokens=False) + [eos] for title in titles]
    trie = TitleTrie(responses, eos)
    return tokenizer, trie, [trie.tokens[path[path > 0]].tolist() for path in trie.paths]


# --------------------------------------------------------------------------------------------------------------- step


def step_work(vocabulary: int) -> Work:
    """The steps of a search in which every beam is the beginning of a random title.

    The logits are random and the same in every step; each procedure returns the scores of the best extensions.
    """
    _, trie, titles = titles_of_ml_100k()
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(PROMPTS * BEAMS, vocabulary, generator=generator)
    beam_scores = -torch.rand(PROMPTS * BEAMS, 1, generator=generator)
    long = [title for title in titles if len(title) > N_STEPS]
    chosen = torch.randint(len(long), (PROMPTS * BEAMS,), generator=generator).tolist()
    tokens = torch.tensor([long[title][:N_STEPS] for title in chosen])
    following = defaultdict(set)
    for title in titles:
        for length, token in enumerate(title):
            following[tuple(title[:length])].add(token)
    allowed = {prefix: sorted(found) for prefix, found in following.items()}
    loop = PrefixConstrainedLogitsProcessor(lambda _, generated: allowed[tuple(generated.tolist())], BEAMS)
    constraint = TitleConstraint(trie)

    def best(scores: Tensor) -> Tensor:
        """The best 2 * beams extensions of each prompt, of the scores [sequences, k] of the beams' extensions."""
        found = (scores + beam_scores).view(PROMPTS, -1)
        return found.topk(min(2 * BEAMS, found.shape[1]), dim=1).values

    def by_processor(processor: Any) -> list[Tensor]:
        processors = LogitsProcessorList([processor])
        return [best(processors(tokens[:, :n], logits.log_softmax(dim=1))) for n in range(1, N_STEPS)]

    return {
        LOOP: lambda: by_processor(loop),
        PROCESSOR: lambda: by_processor(constraint),
        CANDIDATES: lambda: [best(constraint.candidates(tokens[:, :n], logits)[0]) for n in range(1, N_STEPS)],
    }


def same_extensions(results: dict[str, list[Tensor]]) -> None:
    """All procedures find the same extensions, as far as there are so many."""
    for loop, *others in zip(*results.values(), strict=True):
        for other in others:
            torch.testing.assert_close(other, loop[:, : other.shape[1]], atol=1e-4, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- catalogue


def catalogue_work() -> Work:
    """Log-probabilities [titles] of all titles after one prompt."""
    tokenizer, trie, titles = titles_of_ml_100k()
    model = init_model(tokenizer, TinyLLMConfig()).eval()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, len(tokenizer), (PROMPT,), generator=generator).tolist()
    item_of_title = torch.tensor([trie.items(title)[0] for title in titles])

    def by_trie() -> Tensor:
        scores = title_likelihoods(model, [prompt], trie, pad_token_id=0, max_batch_tokens=BATCH_TOKENS)
        return scores[0, item_of_title].float()

    return {
        ROWS: lambda: by_rows(model, prompt, titles),
        CACHED: lambda: by_cached_rows(model, prompt, titles),
        TRIE: by_trie,
    }


def padded(titles: list[list[int]], n_prompt: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of titles of similar length: their indices, tokens padded on the right, and which are no padding."""
    for indices in length_batches([n_prompt + len(title) for title in titles], BATCH_TOKENS):
        rows = [torch.tensor(titles[index]) for index in indices]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        yield indices, ids, torch.arange(ids.shape[1]) < lengths[:, None]


@torch.no_grad()
def by_rows(model: nn.Module, prompt: list[int], titles: list[list[int]]) -> Tensor:
    """Every title behind a prompt of its own, with logits at the title only."""
    found = torch.empty(len(titles))
    for indices, ids, real in padded(titles, len(prompt)):
        front = torch.tensor(prompt).expand(len(indices), -1)
        labels = torch.cat((torch.full_like(front, -100), ids.masked_fill(~real, -100)), dim=1)
        mask = torch.cat((torch.ones_like(front), real.long()), dim=1)
        log_probs, rows = answer_log_probs(model, torch.cat((front, ids), dim=1), mask, labels)
        found[indices] = torch.zeros(len(indices)).index_add(0, rows, log_probs)
    return found


@torch.no_grad()
def by_cached_rows(model: nn.Module, prompt: list[int], titles: list[list[int]]) -> Tensor:
    """Every title behind a copy of the prompt's keys and values."""
    found = torch.empty(len(titles))
    for indices, ids, real in padded(titles, len(prompt)):
        cache = DynamicCache(config=model.config)
        first = model(input_ids=torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1).logits
        cache.batch_repeat_interleave(len(indices))
        mask = torch.cat((torch.ones(len(indices), len(prompt), dtype=torch.long), real.long()), dim=1)
        logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
        logits = torch.cat((first.expand(len(indices), -1, -1), logits[:, :-1]), dim=1)
        log_probs = logits.log_softmax(dim=2).gather(2, ids[:, :, None])[:, :, 0]
        found[indices] = log_probs.masked_fill(~real, 0.0).sum(dim=1)
    return found


def same_scores(results: dict[str, Tensor]) -> dict[str, Any]:
    """All procedures give the same scores; also says how large the tree is."""
    for name in (CACHED, TRIE):
        torch.testing.assert_close(results[name], results[ROWS], atol=1e-3, rtol=1e-4)
    _, trie, titles = titles_of_ml_100k()
    return {"titles": len(titles), "their tokens": int(trie.lengths.sum()), "nodes of the tree": trie.n_nodes}


SECTIONS = {
    **{
        name: Section(
            f"{N_STEPS - 1} steps of constrained beam search, without the LLM",
            partial(step_work, vocabulary),
            {"prompts": PROMPTS, "beams": BEAMS, "vocabulary": vocabulary},
            (Goal(LOOP, CANDIDATES, 10.0),),
            same_extensions,
        )
        for name, vocabulary in VOCABULARIES.items()
    },
    "catalogue": Section(
        "all titles after a prompt",
        catalogue_work,
        {"prompt": PROMPT, "layers": TinyLLMConfig.n_layers, "width": TinyLLMConfig.hidden_size},
        (Goal(ROWS, TRIE, 5.0),),
        same_scores,
    ),
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
