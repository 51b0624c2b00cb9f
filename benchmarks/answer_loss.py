"""How likely a model finds the true answers: a loss per row, whatever the adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_llm.coreset import losses_per_row
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating
from recbole_llm.prompt.batches import micro_batches


@torch.no_grad()
def answer_losses(model: LLMRecommender, rows: Any, max_tokens: int) -> np.ndarray:
    """Mean loss of the tokens of each row's true answer, by the model as it stands.

    Args:
        model: the recommender.
        rows: a RecBole data set, every row with a titled history and target.
        max_tokens: of a forward pass, padding included.

    Returns:
        float64 ``[rows]``, in nats per token.

    Raises:
        ValueError: a row has no titled history or target.
    """
    histories = model.histories(rows.inter_feat)
    examples = [pair for pair in model.token_pairs(rows.inter_feat) if pair is not None]
    if len(examples) < len(histories):
        raise ValueError(f"{len(histories) - len(examples)} rows have no titled history or target")
    losses = np.empty(len(examples))
    with evaluating(model):
        for batch in micro_batches([len(prompt) + len(answer) for prompt, answer in examples], max_tokens):
            prompts, answers = zip(*(examples[row] for row in batch), strict=True)
            with model.conditioned_on([histories[row] for row in batch]):
                found = model.scorer.log_probs(prompts, [[answer] for answer in answers])
            losses[list(batch)] = losses_per_row(-found.values, found.rows, len(batch)).double().cpu().numpy()
    return losses
