"""DEALRec's scores against the paper's own procedure.

    python -m benchmarks.speed_dealrec [--sections influence,effort-88] [--repeats 7] [--json out.json]

``influence`` is that of rows of ml-100k on a SASRec of RecBole's default size, by the output map of its last attention
block. The paper's procedure is a recursion of 5,000 steps with the Hessian of one row each, then one backward pass per
row. Ours computes what lies before that map once for all products and scores; ``scores`` are the last step of either,
given h, and ``whole`` counts everything.

``effort`` is the gradient norm of an LLM's adapter; the paper's procedure takes one row at a time, with logits at every
position, two backward passes, and the whole gradient kept. What is saved is arithmetic on the prompt that the answer's
loss does not depend on: the output head, and most of the last layer. A section's number is the share of the head in the
matrix products of a token, in percent: 12 is the shape of a large Llama's smaller relatives, 60 that of small models
with a common vocabulary, 88 that of two layers under one. Prompts have 120 to 200 tokens, answers 5 to 10.
How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed
from torch import Tensor, nn

from benchmarks.harness import Goal, Section, Work, llama_with_lora, main
from benchmarks.speed_soft import SIZES, head_share
from recbole_llm.coreset import (
    MeanLoss,
    effort_scores,
    effort_weights,
    losses_per_row,
    parameter_losses,
    row_influence,
)
from recbole_llm.data.rows import load_rows
from recbole_llm.llm.prefill import PrefillScorer
from recbole_llm.prompt.batches import micro_batches
from recbole_llm.selection.recommender_inputs import influence_weights, tail_losses, weighted, weighted_losses
from recbole_llm.selection.tail import TransformerTail
from recbole_llm.settings.config import Config

INFLUENCE = {"rows": 2_000, "batch": 1_024, "steps": 5_000}
DAMP, SCALE = 0.01, 25.0  # of the paper's procedure
EFFORT_SIZES = {
    "effort-12": SIZES["head-12"],
    "effort-60": SIZES["head-60"],
    "effort-88": {"width": 256, "layers": 2, "vocabulary": 50_000},
}
EFFORT = {"rows": 128, "prompt": (120, 200), "answer": (5, 10), "batch tokens": 1024}
PER_ROW, DERIVATIVE = "scores: one backward pass per row", "scores: directional derivatives"
PAPER, OURS = "whole: the paper's procedure", "whole: row_influence"
PUBLIC, ONE_BY_ONE = "the paper's procedure, last layer", "one row at a time, all weights"
LAST, ALL = "batches, last layer", "batches, all weights"


# ---------------------------------------------------------------------------------------------------------- influence


def influence_work() -> Work:
    """Influence on a SASRec with random weights: the arithmetic is that of a trained one."""
    config = Config("SASRec", "ml-100k", config_dict={"show_progress": False})
    init_seed(0, True)
    rows = load_rows(config, few_shot=False)
    model = config.model_class(config, rows.train).eval()
    names = influence_weights(model, "attention")
    params, losses = parameter_losses(model, names, weighted_losses)
    tail = TransformerTail.of(model, names)
    losses_of_tail = tail_losses(tail, names)[1]
    model.requires_grad_(False)
    chosen = np.random.default_rng(0).choice(len(rows.train), INFLUENCE["rows"], replace=False)
    data = weighted(rows.train.inter_feat[torch.from_numpy(np.sort(chosen))], np.arange(INFLUENCE["rows"]))
    batches = [data[part] for part in torch.arange(len(data)).split(INFLUENCE["batch"])]

    def before_the_tail() -> MeanLoss:
        known = [tail.inputs(batch) for batch in batches]
        return MeanLoss(losses_of_tail, params, [weighted(part, np.arange(len(part))) for part in known])

    loss, direction = before_the_tail(), torch.randn_like(params)
    return {
        PER_ROW: lambda: one_backward_per_row(losses, params, data, direction),
        DERIVATIVE: lambda: loss.scores(direction),
        PAPER: lambda: paper_influence(losses, params, data, loss.gradient()),
        OURS: lambda: row_influence(before_the_tail()).scores,
    }


def one_backward_per_row(losses: Any, params: Tensor, data: Any, direction: Tensor) -> Tensor:
    """``<grad L(s), direction>`` from the gradient of each row."""
    found = []
    for row in range(len(data)):
        point = params.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(point, data[row : row + 1])[0], point)
        found.append(gradient @ direction)
    return torch.stack(found)


def paper_influence(losses: Any, params: Tensor, data: Any, start: Tensor) -> Tensor:
    """``h <- v + (1 - damp) h - H_s h / scale`` with the Hessian of a random row s, then one backward pass per row."""
    estimate = start
    for row in np.random.default_rng(0).integers(len(data), size=INFLUENCE["steps"]).tolist():
        point = params.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(point, data[row : row + 1])[0], point, create_graph=True)
        (image,) = torch.autograd.grad(gradient, point, estimate)
        estimate = start + (1 - DAMP) * estimate - image / SCALE
    return one_backward_per_row(losses, params, data, estimate)


def same_influence(results: dict[str, Any]) -> None:
    """The same scores row by row; the two whole procedures solve differently damped systems."""
    slow, fast = results[PER_ROW].double(), results[DERIVATIVE].double()
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))


# ------------------------------------------------------------------------------------------------------------- effort


def effort_work(size: str) -> Callable[[], Work]:
    """Effort of rows whose prompts and answers have the lengths of histories and titles, under a random Llama."""

    def work() -> Work:
        model = llama_with_lora(**EFFORT_SIZES[size]).eval()
        rows = effort_rows(EFFORT_SIZES[size]["vocabulary"])
        longest = max(len(answer) for _, answer in rows)
        batches = micro_batches([len(prompt) + longest for prompt, _ in rows], EFFORT["batch tokens"])
        scorer = PrefillScorer(model, pad_token_id=0)

        def answer_losses(_model: nn.Module, batch: list[int]) -> Tensor:
            found = scorer.log_probs([rows[row][0] for row in batch], [rows[row][1] for row in batch])
            return losses_per_row(-found.values, found.rows, len(batch))

        def ours(which: str) -> np.ndarray:
            found = np.empty(len(rows))
            found[np.concatenate(batches)] = effort_scores(model, answer_losses, batches, effort_weights(model, which))
            return found

        return {
            PUBLIC: lambda: public_effort(model, rows, effort_weights(model, "reference")),
            LAST: lambda: ours("reference"),
            ONE_BY_ONE: lambda: effort_one_by_one(model, rows, effort_weights(model)),
            ALL: lambda: ours("all"),
        }

    return work


def effort_rows(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of random tokens."""
    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(3, vocabulary, rng.integers(low, high + 1)).tolist()

    return [(tokens(*EFFORT["prompt"]), tokens(*EFFORT["answer"])) for _ in range(EFFORT["rows"])]


def row_loss(model: nn.Module, prompt: list[int], answer: list[int], whole: bool) -> Tensor:
    """Mean over the tokens of the answer, or of the whole row, with logits everywhere."""
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[:, : 0 if whole else len(prompt)] = -100
    return model(input_ids=ids, labels=labels, use_cache=False).loss


def public_effort(model: nn.Module, rows: list[Any], names: list[str]) -> Tensor:
    """Batch 1, two backward passes whose gradients add up, and all gradients kept until their norms are taken."""
    weights = [dict(model.named_parameters())[name] for name in names]
    before = {weight: weight.requires_grad for weight in model.parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_()
    kept = []
    for prompt, answer in rows:
        model.zero_grad(set_to_none=True)
        loss = row_loss(model, prompt, answer, whole=True)
        loss.backward(retain_graph=True)
        loss.backward()
        kept.append(torch.cat([weight.grad.reshape(-1) for weight in weights]))
    model.zero_grad(set_to_none=True)
    for weight, required in before.items():
        weight.requires_grad_(required)
    return torch.stack(kept).norm(dim=1)


def effort_one_by_one(model: nn.Module, rows: list[Any], names: list[str]) -> Tensor:
    """Norm of the gradient of the answer's loss, one forward and one backward pass per row."""
    weights = [dict(model.named_parameters())[name] for name in names]
    norms = []
    for prompt, answer in rows:
        parts = torch.autograd.grad(row_loss(model, prompt, answer, whole=False), weights, materialize_grads=True)
        norms.append(torch.cat([part.reshape(-1) for part in parts]).norm())
    return torch.stack(norms)


def same_effort(results: dict[str, Any]) -> None:
    """The two ways to the gradient of the answer agree; the paper's procedure is about the whole row."""
    np.testing.assert_allclose(results[ALL], results[ONE_BY_ONE].numpy(), rtol=1e-3)


SECTIONS = {
    "influence": Section(
        "Influence of all rows",
        influence_work,
        INFLUENCE,
        (Goal(PER_ROW, DERIVATIVE, 50.0), Goal(PAPER, OURS, 1.0)),
        same_influence,
    ),
    **{
        size: Section(
            "Effort",
            effort_work(size),
            {**sizes, "head share": head_share(**sizes), "rows": EFFORT["rows"]},
            (Goal(ONE_BY_ONE, ALL, 5.0), Goal(PUBLIC, LAST, 5.0)),
            same_effort,
        )
        for size, sizes in EFFORT_SIZES.items()
    },
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
