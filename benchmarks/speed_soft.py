"""A training step of SOFT against plain fine-tuning and against two forward passes.

    python -m benchmarks.speed_soft [--sections head-12,head-60,vocabulary-128k] [--repeats 7] [--json out.json]

A step is forward, backward and AdamW on LoRA weights, with both targets at equal weight. The public way computes two
sequences per row and logits at every position. Sizes are named by the share of the output head in the matrix products
of a token: 12 % is that of a 3-billion-parameter Llama. How time and memory are measured is said in
``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Goal, Section, Work, llama_with_lora, main
from recbole_llm.llm.branches import BranchScorer

PROMPT, ANSWER, ROWS = 192, 12, 8  # 16 tokens of prompt to one of answer; lengths vary a little, as in practice
SIZES = {
    "head-12": {"width": 256, "layers": 8, "vocabulary": 3_630},
    "head-60": {"width": 256, "layers": 4, "vocabulary": 20_000},
    "vocabulary-128k": {"width": 1024, "layers": 4, "vocabulary": 128_000},
}
PUBLIC = "two forwards, logits everywhere (public way)"
TWO, ONE, PLAIN = "two forwards of ours", "one forward (SOFT)", "plain fine-tuning of ours"


def head_share(width: int, layers: int, vocabulary: int) -> float:
    """Share of the output head in the matrix products of a token."""
    head, body = width * vocabulary, layers * (4 * width**2 + 3 * width * 3 * width)
    return head / (head + body)


def make_rows(vocabulary: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts, true and distilled answers, whose opening quote alone is common."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    lengths = range(PROMPT - ROWS, PROMPT + ROWS, 2)
    prompts = [tokens(length) for length in lengths]
    answers = [[[5, *tokens(ANSWER - 2), 2] for _ in prompts] for _ in range(2)]
    return prompts, answers[0], answers[1]


def public_loss(model: nn.Module, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """Left-padded rows with ``labels=``, as a Hugging Face trainer computes them."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, answer in enumerate(answers):
        labels[row, width - len(answer) :] = torch.tensor(answer)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, use_cache=False).loss


def work_of(size: str) -> Callable[[], Work]:
    """The procedures at one of :data:`SIZES`; each returns its loss before the step."""

    def work() -> Work:
        model = llama_with_lora(**SIZES[size])
        prompts, real, distilled = make_rows(SIZES[size]["vocabulary"])
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.0)
        scorer = BranchScorer(model, pad_token_id=0)
        scorer.takes_branches()

        def ours(answers: list[list[list[int]]]) -> Tensor:
            return -scorer.log_probs(prompts, answers).values.mean()  # answers are of one length: one mean is the other

        def step(*losses: Callable[[], Tensor]) -> float:
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for loss in losses:
                part = loss() / len(losses)
                part.backward()
                total += part.item()
            optimizer.step()
            return total

        both = [list(pair) for pair in zip(real, distilled, strict=True)]
        return {
            PUBLIC: lambda: step(*(lambda own=own: public_loss(model, prompts, own) for own in (real, distilled))),
            TWO: lambda: step(*(lambda own=own: ours([[answer] for answer in own]) for own in (real, distilled))),
            ONE: lambda: step(lambda: ours(both)),
            PLAIN: lambda: step(lambda: ours([[answer] for answer in real])),
        }

    return work


def same_losses(results: dict[str, Any]) -> None:
    """The three ways to both targets agree."""
    assert max(results[name] for name in (PUBLIC, TWO, ONE)) - min(results[name] for name in (PUBLIC, TWO, ONE)) < 1e-4


SECTIONS = {
    size: Section(
        f"SOFT step, {size}",
        work_of(size),
        {**sizes, "rows": ROWS, "prompt": PROMPT, "answer": ANSWER, "head / matrix products": head_share(**sizes)},
        (Goal(PUBLIC, ONE, 2.0), Goal(TWO, ONE, round(1 / 0.65, 2)), Goal(PLAIN, ONE, round(1 / 1.2, 2))),
        same_losses,
    )
    for size, sizes in SIZES.items()
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
