"""A training step of each objective against one of plain negative log-likelihood.

    python -m benchmarks.speed_objective [--sections vocabulary-32k,vocabulary-128k] [--repeats 7] [--json out.json]

A step is forward, backward and AdamW on LoRA weights; answers are titles of a catalogue. CFT's prompt without a history
is a quarter of a prompt long, about that of its instruction; the other way is one copy of it per answer. How time and
memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Goal, Section, Work, llama_with_lora, main
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.legal import LegalSets
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.objective import BEARObjective, CFTObjective, MSLObjective, TokenObjective

PROMPT, ANSWER, ROWS, TITLES, EOS = 192, 12, 8, 2000, 2
SIZES = {
    "vocabulary-32k": {"width": 256, "layers": 8, "vocabulary": 32_000},
    "vocabulary-128k": {"width": 256, "layers": 8, "vocabulary": 128_000},
}
NLL, MSL, BEAR = "nll", "msl", "bear"
CFT, APART = "cft", "cft, each answer behind its own copy"


def make_titles(vocabulary: int) -> list[list[int]]:
    """Token ids of titles behind one quote: few first words, then ever more."""
    generator = torch.Generator().manual_seed(0)
    words = [
        torch.randint(6, min(vocabulary, 40 * 4**step), (TITLES,), generator=generator) for step in range(ANSWER - 2)
    ]
    return [[5, *(int(column[title]) for column in words)] for title in range(TITLES)]


def work_of(size: str) -> Callable[[], Work]:
    """The steps at one of :data:`SIZES`; each returns its loss before the step."""

    def work() -> Work:
        vocabulary, model = SIZES[size]["vocabulary"], llama_with_lora(**SIZES[size])
        generator = torch.Generator().manual_seed(1)
        lengths = range(PROMPT - ROWS, PROMPT + ROWS, 2)
        prompts = [torch.randint(6, vocabulary, (length,), generator=generator).tolist() for length in lengths]
        titles = make_titles(vocabulary)
        answers = [[[*titles[row], EOS]] for row in range(len(prompts))]
        legal = LegalSets(TitleTrie(titles, EOS))
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.0)
        scorer = TrunkScorer(model, pad_token_id=0)
        scorer.takes_branches(2 * PROMPT)
        bare = prompts[0][: PROMPT // 4]

        def step(loss: Callable[[], Tensor]) -> float:
            optimizer.zero_grad(set_to_none=True)
            found = loss()
            found.backward()
            optimizer.step()
            return found.item()

        def mean(objective: TokenObjective, reader: AnswerReader) -> Tensor:
            losses, weights = objective.terms(reader.read(prompts, answers))
            return (losses * weights).sum() / weights.sum()

        def of(objective: TokenObjective, **options: Any) -> Callable[[], float]:
            reader = AnswerReader(scorer, legal if objective.reads_legal else None, **options)
            return lambda: step(lambda: mean(objective, reader))

        return {
            NLL: lambda: step(lambda: -scorer.log_probs(prompts, answers).values.mean()),
            MSL: of(MSLObjective()),
            BEAR: of(BEARObjective(k=10)),
            CFT: of(CFTObjective(), bare_prompt=bare),
            APART: of(CFTObjective(), bare_prompt=bare, bare_per_row=True),
        }

    return work


def same_losses(results: dict[str, Any]) -> None:
    """Both ways to CFT agree."""
    assert abs(results[CFT] - results[APART]) < 1e-4


SECTIONS = {
    size: Section(
        f"Step of an objective, {size}",
        work_of(size),
        {**sizes, "rows": ROWS, "prompt": PROMPT, "answer": ANSWER, "titles": TITLES},
        (Goal(NLL, MSL, round(1 / 1.1, 2)), Goal(NLL, BEAR, round(1 / 1.1, 2)), Goal(NLL, CFT, round(1 / 1.6, 2))),
        same_losses,
    )
    for size, sizes in SIZES.items()
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
