"""What the prompts of a pass begin with, such as the instruction: computed once, and with its gradient.

Its keys and values are repeated for the rows, which continue from them as if each had computed them itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recbole_llm.llm.branch_batch import Tokens
from recbole_llm.llm.parts import text_config
from recbole_llm.llm.rows import common_prefix

LEAST_SPARED = 0.05  # of a pass' tokens; below that, what a second call costs is not worth it


def head_size(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> int:
    """Tokens that all prompts begin with, where it pays to compute them once; a prompt keeps one of its own at least.

    Args:
        prompts: token ids of each prompt.
        answers: the answers to each prompt.

    Example:
        >>> head_size([[1, 2, 3, 4], [1, 2, 3, 5]], [[[7]], [[8]]])
        3
        >>> head_size([[1, 2, 3], [1, 2]], [[[7]], [[8]]]), head_size([[1, 2, 3]], [[[7]]])
        (1, 0)
    """
    if len(prompts) < 2:
        return 0
    size = min(len(common_prefix(prompts)), min(map(len, prompts)) - 1)
    n_tokens = sum(len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, answers, strict=True))
    return size if size * (len(prompts) - 1) >= LEAST_SPARED * n_tokens else 0


def head_cache(model: nn.Module, head: Tensor, n_rows: int) -> DynamicCache:
    """Keys and values of a beginning, the same for each row.

    Args:
        model: a causal LM, bare or wrapped.
        head: int64 [tokens].
        n_rows: rows that continue from it.
    """
    cache, ids = DynamicCache(config=text_config(model)), head[None]
    positions = torch.arange(len(head), device=head.device)[None]
    mask = torch.ones_like(ids)
    model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(n_rows)
    return cache
