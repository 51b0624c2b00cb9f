"""The whole catalogue ranked by likelihood, exactly: log p(title | prompt) of every title.

A title's log-probability is a sum over the nodes of its path in the title trie, and titles that begin alike share
nodes: each different beginning of a title is computed once per prompt, the prompt itself once, and the token that ends
a title not at all.

The nodes are computed as one sequence under a tree mask, in which a node sees the prompt and its own ancestors, in
pieces of depth-first order; between pieces the keys and values of the path to the next node are kept, so that nothing
is computed twice. The other way, level by level with one row per node, needs a copy of the prompt's keys and values per
node, 2 x layers x prompt x width numbers, and reads it with a single query: memory traffic that exceeds the arithmetic
of small models and leaves that of large ones waiting. Here all queries of a piece share them in one matrix product.
The price is that a query is multiplied with the `piece` keys of its own pass instead of its few ancestors, so a piece
is kept shorter than a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Cache, DynamicCache

from recbole_llm.errors import InputError
from recbole_llm.llm.constrained import Assistant, grouped_logsumexp
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.rows import length_batches, pad_batch
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.modes import evaluating

_PIECE = 128  # nodes of one forward pass, per prompt
_LOGITS = 2**26  # numbers of one forward pass' logits: 256 MB in float32


def title_likelihoods(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: TitleTrie,
    *,
    pad_token_id: int,
    length_penalty: float = 0.0,
    renormalize: bool = False,
    assistant: Assistant | None = None,
    max_batch_tokens: int = 8192,
    row_inputs: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> Tensor:
    """Scores every item by the likelihood of its title; items of one title have equal scores.

    The model is run in eval mode without gradients and given back as it was.

    Args:
        model: A decoder of Hugging Face with full attention, bare or wrapped by peft.
        prompts: Token ids of each prompt, without padding, of any lengths.
        trie: The titles.
        pad_token_id: Any token id: padding is masked.
        length_penalty: See :func:`title_scores`.
        renormalize: See :func:`title_scores`. Beginnings that only one title continues are not computed then.
        assistant: See :func:`title_scores`.
        max_batch_tokens: Limit of (prompts x tokens) of a forward pass; decides memory and speed only.
        row_inputs: Further inputs of the model's forward, tensors [prompts, ...], where more than the tokens decides:
            each pass is given those of its rows.
        progress: Shows a progress bar.

    Returns:
        float64 [prompts, items] on the model's device, larger is better; -inf for an item without a title.

    Raises:
        InputError: The model's attention cannot take a tree mask.
        ValueError: A prompt is empty, or the assistant has not one row per prompt.
        FloatingPointError: The model's logits are not a number.
    """
    if empty := [place for place, prompt in enumerate(prompts) if len(prompt) == 0]:
        raise ValueError(f"prompt {empty[0]} is empty: a decoder needs at least one token to continue")
    if assistant is not None and len(assistant.item_scores) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, but the assistant scores {len(assistant.item_scores)}")
    walk = _Walk(model, trie, pad_token_id, only_choices=renormalize)
    check_attention(model, max(map(len, prompts), default=0) + trie.max_length)
    scores = torch.empty(len(prompts), trie.n_items, dtype=torch.float64, device=walk.device)
    n_rows = max(1, min(max_batch_tokens, _LOGITS // walk.vocabulary) // _PIECE)
    costs = [max(len(prompt), -(-max_batch_tokens // n_rows)) for prompt in prompts]
    bar = tqdm(total=len(prompts), desc="score titles", unit="prompt", disable=not progress)
    with evaluating(model), torch.no_grad(), bar:
        for batch in length_batches(costs, max_batch_tokens):
            inputs = {name: values[batch] for name, values in (row_inputs or {}).items()}
            log_probs = walk.run([prompts[place] for place in batch], inputs)
            helper = None if assistant is None else Assistant(assistant.item_scores[batch], assistant.lm_weight)
            scores[batch] = title_scores(
                trie, log_probs, length_penalty=length_penalty, renormalize=renormalize, assistant=helper
            )
            bar.update(len(batch))
    if scores.isnan().any():
        raise FloatingPointError(f"a title of prompt {int(scores.isnan().any(dim=1).nonzero()[0])} has no score")
    return scores


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
    """
    device = log_probs.device
    steps = log_probs.double().clone()
    steps[:, 0] = 0.0
    if renormalize:
        parents = torch.from_numpy(trie.parents[1:]).to(device)
        steps[:, 1:] -= grouped_logsumexp(steps[:, 1:], parents, trie.n_nodes)[:, parents]
    paths = torch.from_numpy(trie.paths).to(device)
    sums = steps.new_zeros(len(steps), trie.n_titles)
    for nodes in paths.unbind(dim=1):  # behind a title's end stands the root
        sums += steps[:, nodes]
    if assistant is not None and assistant.lm_weight < 1:
        sums = assistant.lm_weight * sums + (1 - assistant.lm_weight) * assistant.title_log_probs(trie).to(device)
    sums /= torch.from_numpy(trie.lengths).to(device).double() ** length_penalty
    untitled = sums.new_full((len(sums), 1), -math.inf)
    return torch.cat((sums, untitled), dim=1)[:, torch.from_numpy(trie.title_of_item).to(device)]


@dataclass
class _Piece:
    """Nodes that are computed together, and what is read off them."""

    tokens: Tensor  # [nodes]
    depths: Tensor  # [nodes]
    kept: Tensor  # [path] places, in the previous piece's path and nodes, of the path to the first node
    sees: Tensor  # bool [nodes, path + nodes]
    children: Tensor  # [edges] trie nodes whose log-probability is read off
    rows: Tensor  # [edges] place of their parent among the nodes
    child_tokens: Tensor  # [edges]


class _Walk:
    """Computes the log-probabilities of all trie nodes for batches of prompts.

    Args:
        model: A causal LM.
        trie: The titles.
        pad_token_id: Any token id.
        only_choices: Leave out nodes whose token has no alternative, and whatever need not be computed then.
    """

    def __init__(self, model: nn.Module, trie: TitleTrie, pad_token_id: int, only_choices: bool) -> None:
        self.model, self.trie, self.pad_token_id, self.only_choices = model, trie, pad_token_id, only_choices
        embedding = model.get_input_embeddings().weight
        self.device, self.dtype = embedding.device, embedding.dtype
        self.vocabulary = model.config.get_text_config().vocab_size
        self.root, *self.pieces = self._plan()

    def run(self, prompts: Sequence[Sequence[int]], inputs: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities float32 [prompts, nodes]; if `only_choices`, logits, and 0 where there is no choice.

        `inputs` of the forward pass, [prompts, ...], are given to each.
        """
        ids, mask = pad_batch(prompts, self.pad_token_id, self.device, left=True)
        width = mask.shape[1]
        lengths, cache = mask.sum(dim=1, keepdim=True), DynamicCache()
        found = torch.zeros(len(prompts), self.trie.n_nodes, device=self.device)
        logits = self._forward(ids, mask, positions_from_mask(mask), cache, 1, inputs)
        self._read(self.root, logits, found)
        for piece in self.pieces:
            _keep(cache, width, piece.kept)
            positions = lengths + piece.depths - 1
            ids = piece.tokens.expand(len(prompts), -1)
            logits = self._forward(ids, self._mask(mask, piece), positions, cache, len(piece.tokens), inputs)
            self._read(piece, logits, found)
        return found

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache, n_logits: int, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Adds `ids` [prompts, tokens] to the cache; returns the logits of the last `n_logits`."""
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=n_logits,
            **inputs,
        ).logits

    def _mask(self, prompt_mask: Tensor, piece: _Piece) -> Tensor:
        """Additive mask [prompts, 1, nodes, prompt + path + nodes]: every attention but the flash kernels takes it."""
        n_prompts, n_nodes = len(prompt_mask), len(piece.tokens)
        prompt = prompt_mask.bool()[:, None, None].expand(-1, -1, n_nodes, -1)
        sees = torch.cat((prompt, piece.sees.expand(n_prompts, 1, -1, -1)), dim=3)
        return torch.zeros(sees.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~sees, torch.finfo(self.dtype).min
        )

    def _read(self, piece: _Piece, logits: Tensor, found: Tensor) -> None:
        """Writes what the piece's logits [prompts, nodes, vocabulary] say about the children of its nodes."""
        values = logits.float() if self.only_choices else logits.float().log_softmax(dim=2)
        found[:, piece.children] = values[:, piece.rows, piece.child_tokens]

    def _plan(self) -> Iterator[_Piece]:
        """The root, which is the end of the prompt, then the nodes that have to be computed, depth first."""
        trie = self.trie
        yield self._piece(np.array([0]), np.array([], dtype=np.int64), np.array([], dtype=np.int64))
        nodes = np.flatnonzero(self._needed())[1:]
        before = np.array([], dtype=np.int64)  # nodes whose keys and values the cache holds
        for start in range(0, len(nodes), _PIECE):
            own = nodes[start : start + _PIECE]
            path = trie.paths[trie.first_titles[own[0]], : trie.depths[own[0]] - 1]
            yield self._piece(own, path, np.searchsorted(before, path))
            before = np.concatenate((path, own))

    def _needed(self) -> np.ndarray:
        """bool [nodes]: whether what follows the node is asked for, at the node itself or below it."""
        trie = self.trie
        asked = trie.n_children > (1 if self.only_choices else 0)
        n_asked = np.concatenate(([0], asked.cumsum()))
        return n_asked[trie.ends] > n_asked[:-1]

    def _piece(self, nodes: np.ndarray, path: np.ndarray, kept: np.ndarray) -> _Piece:
        trie = self.trie
        keys = np.concatenate((path, nodes))
        sees = (keys <= nodes[:, None]) & (nodes[:, None] < trie.ends[keys])
        first, last = trie.child_starts[nodes[0]], trie.child_starts[nodes[-1] + 1]
        children = trie.children[first:last]
        if self.only_choices:
            children = children[trie.n_children[trie.parents[children]] > 1]
        rows = np.searchsorted(nodes, trie.parents[children])
        arrays = (trie.tokens[nodes], trie.depths[nodes], kept, sees, children, rows, trie.tokens[children])
        return _Piece(*(torch.tensor(array, device=self.device) for array in arrays))


def _keep(cache: Cache, n_prompt: int, places: Tensor) -> None:
    """Drops all slots behind the prompt but `places`, counted from its end."""
    slots = torch.cat((torch.arange(n_prompt, device=places.device), places + n_prompt))
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, slots], layer.values[:, :, slots]


def check_attention(model: nn.Module, n_tokens: int) -> None:
    """Refuses layers that a tree mask does not reach, or for which it would take the place of a narrower one.

    Args:
        model: A causal LM.
        n_tokens: Longest prompt and title together.

    Raises:
        InputError: There are such layers.
    """
    config = model.config.get_text_config()
    kernel = getattr(config, "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise InputError(f"attn_implementation: {kernel} cannot score a tree of titles; choose sdpa or eager")
    layers = DynamicCache(config=config)
    window = min((layer.get_max_length() for layer in layers.layers if layer.is_sliding), default=n_tokens)
    if any(layers.is_linear) or window < n_tokens:
        raise InputError(
            f"this LLM has layers that do not attend to all of {n_tokens} tokens, as scoring a tree of titles needs; "
            "shorten max_prompt_tokens, or choose another grounding"
        )
