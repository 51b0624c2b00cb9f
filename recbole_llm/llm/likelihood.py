"""Exact log p(title | prompt) of every title of the catalogue.

A title's log-probability is a sum over the nodes of its path in the title trie, and titles that begin alike share
nodes: each different beginning of a title is computed once per prompt, the prompt itself once, and the token that ends
a title not at all.

How that is done in one sequence per prompt, and in one row per title where an LLM does not take that, is in
:mod:`~recbole_llm.llm.title_walk`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.distributed import process
from recbole_llm.errors import NonFiniteError
from recbole_llm.kept import Keep, keep_nothing
from recbole_llm.llm.assistant import Assistant
from recbole_llm.llm.budget import MIB, TokenBudget, run_batches
from recbole_llm.llm.rows import check_prompts, prompt_facts
from recbole_llm.llm.title_scoring import TitleScoring, title_scores
from recbole_llm.llm.title_walk import RowWalk, TreeWalk
from recbole_llm.llm.title_ways import MAX_ROW_TITLES, Way, check_tree, choose_way, kernel_obstacle, tree_scores
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar

__all__ = [
    "MAX_ROW_TITLES", "Way", "check_tree", "choose_way", "estimate_likelihoods", "kernel_obstacle", "title_likelihoods",
    "title_scores", "tree_scores",
]  # fmt: skip


def title_likelihoods(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: TitleTrie,
    *,
    pad_token_id: int,
    length_penalty: float = 0.0,
    renormalize: bool = False,
    assistant: Assistant | None = None,
    max_batch_tokens: int | TokenBudget = 8192,
    row_inputs: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    way: Way = "tree",
    keep: Keep = keep_nothing,
) -> Tensor:
    """Scores every item by the likelihood of its title; items of one title have equal scores.

    The model is run in eval mode without gradients and returned in its previous mode.

    Args:
        model: A decoder of Hugging Face, bare or wrapped by peft.
        prompts: Token ids of each prompt, without padding, of any lengths.
        trie: The titles.
        pad_token_id: Any token id: padding is masked.
        length_penalty: See :func:`title_scores`.
        renormalize: See :func:`title_scores`. Beginnings that only one title continues are not computed then.
        assistant: See :func:`title_scores`.
        max_batch_tokens: Limit of (prompts x tokens) of a forward pass; decides memory and speed only. Where memory
            runs out, batches are halved.
        row_inputs: Further inputs of the model's forward, tensors [prompts, ...], where more than the tokens decides:
            each pass is given those of its rows.
        progress: Shows a progress bar.
        way: ``tree``, for LLMs that compute a tree of titles as separate sequences, or ``rows``, for all;
            :func:`choose_way` tells which. Both have the same result.
        keep: Where finished rows are kept, 11 bytes per row and item, so that a killed run continues after them; it is
            asked by everything the scores depend on besides the model.

    Returns:
        float64 [prompts, items] on the model's device, larger is better; -inf for an item without a title.

    Raises:
        InputError: The LLM does not compute a tree of titles as separate sequences.
        ValueError: A prompt is empty, or the assistant has not one row per prompt.
        NonFiniteError: The model's logits are not a number.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> trie = TitleTrie([None, [5, 6], [8]], eos_token_id=2)
        >>> scores = title_likelihoods(model, [[1, 9]], trie, pad_token_id=0, renormalize=True)
        >>> scores.exp().sum(dim=1).round(decimals=4).tolist()  # renormalised over the titles
        [1.0]
    """
    check_prompts(prompts)
    scoring = TitleScoring(trie, length_penalty, renormalize, assistant)
    if assistant is not None:
        assistant.check(len(prompts))
    budget, walk = TokenBudget.of(max_batch_tokens), _walk(model, trie, pad_token_id, way, renormalize)
    if way == "tree":
        check_tree(model, max(map(len, prompts), default=0) + trie.max_length, row_inputs)
    scores = torch.empty(len(prompts), trie.n_items, dtype=torch.float64, device=walk.device)
    kept = keep("likelihoods", lambda: {**prompt_facts(prompts, row_inputs), **scoring.facts(way)})
    bar = Bar(total=len(prompts), desc="score titles", unit="prompt", disable=not progress)
    with evaluating(model), torch.no_grad(), bar:

        def likelihoods(chosen: Sequence[int]) -> dict[int, Tensor]:
            batch = list(chosen)
            inputs = {name: values[batch] for name, values in (row_inputs or {}).items()}
            log_probs = walk.run([prompts[index] for index in batch], inputs, budget)
            return dict(zip(batch, scoring.scores(batch, log_probs), strict=True))

        def run(batch: list[int]) -> None:
            values = kept.batch(batch, likelihoods, _packed, _unpacked)
            for row in batch:
                scores[row] = values[row]
            bar.update(len(batch))

        process().complete(scores, run_batches(partial(walk.costs, prompts), budget, run, together=True))
    _check_scores(scores)
    return scores


def _check_scores(scores: Tensor) -> None:
    if scores.isnan().any():
        broken = scores.isnan().any(dim=1).nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"a title of prompt {broken[0]} has no score ({len(broken)} of {len(scores)} prompts): the LLM's logits "
            "are NaN; check its weights, or use llm_dtype float32 or bfloat16"
        )


def _packed(scores: Tensor) -> str:
    """A row of scores as text, every bit of it."""
    return base64.b64encode(scores.cpu().numpy().tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float64).copy())


def _walk(model: nn.Module, trie: TitleTrie, pad_token_id: int, way: Way, only_choices: bool) -> TreeWalk | RowWalk:
    if way == "tree":
        return TreeWalk(model, trie, pad_token_id, only_choices=only_choices)
    return RowWalk(model, trie, pad_token_id)


def estimate_likelihoods(model: nn.Module, trie: TitleTrie, max_batch_tokens: int, renormalize: bool = False) -> str:
    """What the likelihoods of a catalogue as a tree will take, in words.

    Args:
        model: A causal LM.
        trie: The titles.
        max_batch_tokens: Limit of a forward pass.
        renormalize: Whether only tokens with an alternative count.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> estimate_likelihoods(model, TitleTrie([[5, 6], [8]], eos_token_id=2), max_batch_tokens=8192)
        '2 titles are 3 tokens of a tree: 2 passes of 64 prompts, 1 MiB at most; 32 passes for 1,000 prompts'
    """
    walk = TreeWalk(model, trie, 0, only_choices=renormalize)
    n_nodes, n_passes = sum(len(piece.tokens) for piece in walk.pieces), 1 + len(walk.pieces)
    n_prompts = walk.prompts_at_once(max_batch_tokens)
    longest = max((len(piece.tokens) for piece in walk.pieces), default=1)
    size = n_prompts * (longest * walk.vocabulary * walk.dtype.itemsize + trie.n_nodes * (4 + 8) + trie.n_items * 8)
    return (
        f"{trie.n_titles:,} titles are {n_nodes:,} tokens of a tree: {n_passes:,} passes of {n_prompts:,} prompts, "
        f"{-(-size // MIB):,} MiB at most; {-(-1000 // n_prompts) * n_passes:,} passes for 1,000 prompts"
    )
