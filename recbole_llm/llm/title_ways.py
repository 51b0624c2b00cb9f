"""How an LLM can score a catalogue: all titles of a prompt as a tree in one sequence, or a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from recbole_llm.errors import InputError
from recbole_llm.llm import title_walk
from recbole_llm.llm.capabilities import FastPath, Finding, find, narrow_layers
from recbole_llm.llm.parts import text_config
from recbole_llm.llm.sample import Sample
from recbole_llm.llm.title_scoring import title_scores
from recbole_llm.llm.trie import TitleTrie

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_ROW_TITLES = 1000
"""Largest catalogue of which every title is given a row of its own with the whole prompt."""
Way = Literal["tree", "rows"]
"""All titles of a prompt in one sequence, or a row for each."""


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
    trie = TitleTrie([*sample.answers, *sample.filler(title_walk.PIECE // 2)], sample.answers[0][-1])
    walk = title_walk.TreeWalk(model, trie, sample.pad_token_id)
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
