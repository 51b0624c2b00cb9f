"""Exact log p(title | prompt) of every title of the catalogue.

A title's log-probability is a sum over the nodes of its path in the title trie, and titles that begin alike share
nodes: each different beginning of a title is computed once per prompt, the prompt itself once, and the token that ends
a title not at all.

How that is done in one sequence per prompt, and in one row per title where an LLM does not take that, is in
:mod:`~recbole_llm.llm.title_walk`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.distributed import process
from recbole_llm.errors import InputError, NonFiniteError
from recbole_llm.hashing import hash_arrays, hash_tensors
from recbole_llm.kept import Keep, keep_nothing
from recbole_llm.llm.assistant import Assistant, grouped_logsumexp
from recbole_llm.llm.budget import MIB, TokenBudget, run_batches
from recbole_llm.llm.capabilities import FastPath, Finding, find, narrow_layers
from recbole_llm.llm.parts import text_config
from recbole_llm.llm.sample import Sample
from recbole_llm.llm.title_walk import RowWalk, TreeWalk
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PIECE = 128  # nodes of one forward pass, per prompt
MAX_ROW_TITLES = 1000
"""Largest catalogue of which every title is given a row of its own with the whole prompt."""
Way = Literal["tree", "rows"]
"""All titles of a prompt in one sequence, or a row for each."""


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
    if empty := [index for index, prompt in enumerate(prompts) if len(prompt) == 0]:
        raise ValueError(f"prompt {empty[0]} is empty: a decoder needs at least one token to continue")
    if assistant is not None and len(assistant.item_scores) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, but the assistant scores {len(assistant.item_scores)}")
    budget, walk = TokenBudget.of(max_batch_tokens), _walk(model, trie, pad_token_id, way, renormalize)
    if way == "tree":
        check_tree(model, max(map(len, prompts), default=0) + trie.max_length, row_inputs)

    def costs(tokens: int) -> list[int]:
        if isinstance(walk, RowWalk):
            return [tokens] * len(prompts)  # one by one: a prompt's titles fill several batches
        n_rows = walk.prompts_at_once(tokens)
        return [max(len(prompt), -(-tokens // n_rows)) for prompt in prompts]

    def facts() -> dict[str, Any]:
        opinion = None if assistant is None else [assistant.lm_weight, hash_tensors({"": assistant.item_scores})]
        return {
            "prompts": [list(prompt) for prompt in prompts],
            "titles": hash_arrays(trie.tokens, trie.parents, trie.title_of_item),
            "scores": [length_penalty, renormalize, way, opinion],
            "row_inputs": hash_tensors(row_inputs or {}),
        }

    scores = torch.empty(len(prompts), trie.n_items, dtype=torch.float64, device=walk.device)
    kept = keep("likelihoods", facts)
    bar = Bar(total=len(prompts), desc="score titles", unit="prompt", disable=not progress)
    with evaluating(model), torch.no_grad(), bar:

        def likelihoods(chosen: Sequence[int]) -> dict[int, Tensor]:
            batch = list(chosen)
            inputs = {name: values[batch] for name, values in (row_inputs or {}).items()}
            log_probs = walk.run([prompts[index] for index in batch], inputs, budget)
            helper = None if assistant is None else Assistant(assistant.item_scores[batch], assistant.lm_weight)
            found = title_scores(
                trie, log_probs, length_penalty=length_penalty, renormalize=renormalize, assistant=helper
            )
            return dict(zip(batch, found, strict=True))

        def run(batch: list[int]) -> None:
            values = kept.batch(batch, likelihoods, _packed, _unpacked)
            for row in batch:
                scores[row] = values[row]
            bar.update(len(batch))

        process().complete(scores, run_batches(costs, budget, run, together=True))
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
        return TreeWalk(model, trie, pad_token_id, only_choices=only_choices, n_at_once=_PIECE)
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
    walk = TreeWalk(model, trie, 0, only_choices=renormalize, n_at_once=_PIECE)
    n_nodes, n_passes = sum(len(piece.tokens) for piece in walk.pieces), 1 + len(walk.pieces)
    n_prompts = walk.prompts_at_once(max_batch_tokens)
    longest = max((len(piece.tokens) for piece in walk.pieces), default=1)
    size = n_prompts * (longest * walk.vocabulary * walk.dtype.itemsize + trie.n_nodes * (4 + 8) + trie.n_items * 8)
    return (
        f"{trie.n_titles:,} titles are {n_nodes:,} tokens of a tree: {n_passes:,} passes of {n_prompts:,} prompts, "
        f"{-(-size // MIB):,} MiB at most; {-(-1000 // n_prompts) * n_passes:,} passes for 1,000 prompts"
    )


def title_scores(
    trie: TitleTrie,
    log_probs: Tensor,
    *,
    length_penalty: float = 0.0,
    renormalize: bool = False,
    assistant: Assistant | None = None,
) -> Tensor:
    """The scores of D3 (arXiv 2406.14900) from the log-probabilities of all trie nodes.

    With ``S(y)`` the sum over a title's ``n`` tokens, EOS included, a title's score is ``S(y) / n ** length_penalty``:
    0 is its log-probability, 1 the mean. With an assistant, ``S`` becomes ``a S(y) + (1 - a) log q(y)``.

    Args:
        trie: The titles.
        log_probs: [rows, nodes], log-probability of each node's token given the tokens before it; the root's is not
            read.
        length_penalty: Exponent of the number of tokens.
        renormalize: Whether probabilities are taken among the tokens that continue a title. The probabilities of all
            titles then sum to 1, and a token without alternative costs exactly nothing.
        assistant: The text-free assistant's scores of each row, if any.

    Returns:
        float64 [rows, items]; -inf for an item without a title.

    Example:
        >>> trie = TitleTrie([None, [5], [8]], eos_token_id=2)
        >>> title_scores(trie, torch.full((1, trie.n_nodes), -1.0)).tolist()  # each title and its EOS
        [[-inf, -2.0, -2.0]]
    """
    device = log_probs.device
    steps = log_probs.double().clone()
    steps[:, 0] = 0.0
    if renormalize:
        parents = torch.from_numpy(trie.parents[1:]).to(device)
        steps[:, 1:] -= grouped_logsumexp(steps[:, 1:], parents, trie.n_nodes)[:, parents]
    paths = torch.from_numpy(trie.paths).to(device)
    sums = steps.new_zeros(len(steps), trie.n_titles)
    for nodes in paths.unbind(dim=1):  # after a title's end stands the root
        sums += steps[:, nodes]
    if assistant is not None and assistant.lm_weight < 1:
        sums = assistant.lm_weight * sums + (1 - assistant.lm_weight) * assistant.title_log_probs(trie).to(device)
    sums /= torch.from_numpy(trie.lengths).to(device).double() ** length_penalty
    untitled = sums.new_full((len(sums), 1), -math.inf)
    return torch.cat((sums, untitled), dim=1)[:, torch.from_numpy(trie.title_of_item).to(device)]


def choose_way(model: nn.Module, n_tokens: int, n_titles: int, row_inputs: Mapping[str, Tensor] | None = None) -> Way:
    """How the likelihoods of a catalogue can be computed.

    Args:
        model: A causal LM.
        n_tokens: Longest prompt and title together.
        n_titles: Different titles.
        row_inputs: Further inputs of the model's forward, [prompts, ...].

    Raises:
        InputError: Not at all: the LLM takes no tree of titles, and the catalogue is too large for a row per title.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> choose_way(model, n_tokens=8, n_titles=3)
        'tree'
    """
    finding = _find_tree(model, n_tokens, row_inputs)
    if finding.works:
        return "tree"
    if n_titles <= MAX_ROW_TITLES:
        return "rows"
    raise InputError(
        f"grounding: likelihood needs an LLM that scores {n_titles:,} titles as a tree, and this one does not: "
        f"{finding.reason}; set --grounding=constrained or embedding, or another llm_path "
        f"(up to {MAX_ROW_TITLES:,} titles are scored one by one)",
        kind="conflict",
    )


def check_tree(model: nn.Module, n_tokens: int, row_inputs: Mapping[str, Tensor] | None = None) -> None:
    """Refuse an LLM that does not compute a tree of titles as separate sequences.

    Args:
        model: A causal LM.
        n_tokens: Longest prompt and title together.
        row_inputs: Further inputs of the model's forward, [prompts, ...].

    Raises:
        InputError: It does not; one line with the reason.
    """
    kernel = getattr(text_config(model), "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise InputError(
            f"attn_implementation: {kernel} cannot score a tree of titles; choose sdpa or eager", kind="conflict"
        )
    finding = _find_tree(model, n_tokens, row_inputs)
    if not finding.works:
        raise InputError(
            f"grounding: likelihood cannot score titles as a tree with this LLM: {finding.reason}; shorten "
            "max_prompt_tokens, or choose another grounding",
            kind="conflict",
        )


def tree_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's answers as titles of a tree. Returns: float64 [prompts, answers].

    Other titles fill a piece before them: a window that counts slots is passed by the tree, not by a title.
    """
    trie = TitleTrie([*sample.answers, *sample.filler(_PIECE // 2)], sample.answers[0][-1])
    walk = TreeWalk(model, trie, sample.pad_token_id, n_at_once=_PIECE)
    scores = title_scores(trie, walk.run(sample.prompts, sample.inputs_of(len(sample.prompts))))
    return scores[:, : len(sample.answers)]


def kernel_obstacle(config: PretrainedConfig, n_tokens: int) -> str | None:
    """What the config says against a tree of titles, in words; None where it says nothing."""
    kernel = getattr(config, "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        return f"attn_implementation {kernel} takes no mask per pair of tokens"
    return narrow_layers(config, n_tokens)


def _find_tree(model: nn.Module, n_tokens: int, row_inputs: Mapping[str, Tensor] | None = None) -> Finding:
    return find(model, FastPath.TREE, n_tokens, tree_scores, kernel_obstacle, row_inputs)
