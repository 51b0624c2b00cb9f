"""A training step with dropout drawn by row and token against one with PyTorch's, and against none.

    python -m benchmarks.speed_dropout [--sections narrow,wide] [--repeats 7] [--json out.json]

A step is forward, backward and AdamW on LoRA weights of query and value (``narrow``) or of all linear maps (``wide``).
How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Goal, Section, Work, main, random_llama
from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.dropout import TokenDraws, draw_by_token
from recbole_llm.llm.branches import BranchScorer

PROMPT, ANSWER, ROWS, EOS, SHARE = 192, 12, 8, 2, 0.05
SIZES = {
    "narrow": {"width": 192, "layers": 2, "vocabulary": 4096},
    "wide": {"width": 512, "layers": 8, "vocabulary": 32_000},
}
TARGETS: dict[str, Any] = {"narrow": "all", "wide": ("q_proj", "v_proj")}
BY_TOKEN, BY_STREAM, NONE = "by token", "PyTorch's", "no dropout"


def work_of(size: str) -> Callable[[], Work]:
    """The steps at one of :data:`SIZES`; each returns its loss before the step."""

    def tuned(dropout: float) -> nn.Module:
        llm = random_llama(**SIZES[size], tie_word_embeddings=True)
        return LoraAdapter(dropout=dropout, target_modules=TARGETS[size]).attach(llm).train()

    def work() -> Work:
        generator = torch.Generator().manual_seed(1)
        vocabulary = SIZES[size]["vocabulary"]
        prompts = [torch.randint(6, vocabulary, (PROMPT + row,), generator=generator).tolist() for row in range(ROWS)]
        answers = [[[*torch.randint(6, vocabulary, (ANSWER - 1,), generator=generator).tolist(), EOS]] for _ in prompts]

        def step_of(model: nn.Module, draws: TokenDraws | None) -> Callable[[], float]:
            optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.0)
            scorer = BranchScorer(model, 0, draws)

            def step() -> float:
                optimizer.zero_grad(set_to_none=True)
                if draws is not None:
                    draws.use_rows(range(ROWS))
                loss = -scorer.log_probs(prompts, answers).values.mean()
                loss.backward()
                optimizer.step()
                return loss.item()

            def drawn() -> float:
                if draws is None:
                    return step()
                with draws.step(1):
                    return step()

            return drawn

        by_token = tuned(SHARE)
        return {
            BY_TOKEN: step_of(by_token, draw_by_token(by_token)),
            BY_STREAM: step_of(tuned(SHARE), None),
            NONE: step_of(tuned(0.0), None),
        }

    return work


SECTIONS = {
    size: Section(
        f"Step with dropout, {size}",
        work_of(size),
        {**sizes, "rows": ROWS, "prompt": PROMPT, "answer": ANSWER, "share": SHARE},
        (Goal(BY_STREAM, BY_TOKEN, 0.9),),
    )
    for size, sizes in SIZES.items()
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
