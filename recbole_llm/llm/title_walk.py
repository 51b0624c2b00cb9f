"""Log-probabilities of all nodes of a title trie: as one sequence under a tree mask, or one row per title.

Under a tree mask a node sees the prompt and its own ancestors. The nodes are computed in pieces of depth-first order;
between pieces the keys and values of the path to the next node are kept, so that nothing is computed twice. The other
way, level by level with one row per node, needs a copy of the prompt's keys and values per node, 2 x layers x prompt x
width numbers, and reads it with a single query: memory traffic that exceeds the arithmetic of small models and leaves
that of large ones waiting. Here all queries of a piece share them in one matrix product. The price is that a query is
multiplied with the keys of its own pass' whole piece instead of its few ancestors, so a piece is kept shorter than a
prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from recbole_llm.llm.budget import TokenBudget, free_memory, run_batches
from recbole_llm.llm.loss import logits_at, positions_from_mask
from recbole_llm.llm.parts import input_embedding, text_config
from recbole_llm.llm.rows import pad_batch
from recbole_llm.llm.trie import TitleTrie

PIECE = 128  # nodes of one forward pass, per prompt
LOGIT_BYTES = 2**28  # of one forward pass; more on a GPU that has more
NORMALISED = 2**22  # logits at a time that are normalised on a CPU, in float32


@dataclass
class Piece:
    """Nodes that are computed together, and what is read off them."""

    tokens: Tensor  # [nodes]
    depths: Tensor  # [nodes]
    kept: Tensor  # [path] indices, in the previous piece's path and nodes, of the path to the first node
    sees: Tensor  # bool [nodes, path + nodes]
    children: Tensor  # [edges] trie nodes whose log-probability is read off
    rows: Tensor  # [edges] index of their parent among the nodes
    child_tokens: Tensor  # [edges]


class TreeWalk:
    """Log-probabilities of all trie nodes for batches of prompts: a node is a token of one sequence per prompt.

    Args:
        model: A causal LM.
        trie: The titles.
        pad_token_id: Any token id.
        only_choices: Leave out nodes whose token has no alternative, and whatever need not be computed then.
    """

    def __init__(self, model: nn.Module, trie: TitleTrie, pad_token_id: int, only_choices: bool = False) -> None:
        self.model, self.trie, self.pad_token_id, self.only_choices = model, trie, pad_token_id, only_choices
        self.n_at_once = PIECE
        embedding = input_embedding(model).weight
        self.device, self.dtype = embedding.device, embedding.dtype
        self.vocabulary: int = text_config(model).vocab_size
        self.root, *self.pieces = self._plan()

    def prompts_at_once(self, max_batch_tokens: int) -> int:
        """Prompts whose nodes and their logits fit into a forward pass of so many tokens."""
        room = LOGIT_BYTES if self.device.type == "cpu" else max(LOGIT_BYTES, (free_memory(self.device) or 0) // 4)
        n_logits = room // max(4 if self.device.type == "cpu" else self.dtype.itemsize, 1)
        return max(1, min(max_batch_tokens, n_logits // self.vocabulary) // self.n_at_once)

    def costs(self, prompts: Sequence[Sequence[int]], max_batch_tokens: int) -> list[int]:
        """Tokens that each prompt counts for in a batch of at most so many."""
        n_rows = self.prompts_at_once(max_batch_tokens)
        return [max(len(prompt), -(-max_batch_tokens // n_rows)) for prompt in prompts]

    def run(
        self, prompts: Sequence[Sequence[int]], inputs: Mapping[str, Tensor], budget: TokenBudget | None = None
    ) -> Tensor:
        """Log-probabilities float32 [prompts, nodes]; if `only_choices`, logits, and 0 where there is no choice.

        `inputs` of the forward pass, [prompts, ...], are given to each; the caller keeps to a budget.
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
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=n_logits,
            **inputs,
        )
        logits: Tensor = output.logits
        return logits

    def _mask(self, prompt_mask: Tensor, piece: Piece) -> Tensor:
        """Additive mask [prompts, 1, nodes, prompt + path + nodes]: every attention but the flash kernels takes it."""
        n_prompts, n_nodes = len(prompt_mask), len(piece.tokens)
        prompt = prompt_mask.bool()[:, None, None].expand(-1, -1, n_nodes, -1)
        sees = torch.cat((prompt, piece.sees.expand(n_prompts, 1, -1, -1)), dim=3)
        return torch.zeros(sees.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~sees, torch.finfo(self.dtype).min
        )

    def _read(self, piece: Piece, logits: Tensor, found: Tensor) -> None:
        """Writes what the piece's logits [prompts, nodes, vocabulary] say about the children of its nodes."""
        if self.only_choices:  # what is read off is what is copied
            found[:, piece.children] = logits[:, piece.rows, piece.child_tokens].float()
            return
        at_once = NORMALISED if self.device.type == "cpu" else LOGIT_BYTES // 4
        n_nodes = max(1, at_once // (len(logits) * self.vocabulary))
        for start in range(0, logits.shape[1], n_nodes):  # the whole in float32 would be the largest tensor there is
            values = logits[:, start : start + n_nodes].float().log_softmax(dim=2)
            first, last = torch.searchsorted(piece.rows, torch.tensor([start, start + n_nodes], device=self.device))
            own = slice(int(first), int(last))
            found[:, piece.children[own]] = values[:, piece.rows[own] - start, piece.child_tokens[own]]

    def _plan(self) -> Iterator[Piece]:
        """The root, which is the end of the prompt, then the nodes that have to be computed, depth first."""
        trie = self.trie
        yield self._piece(np.array([0]), np.array([], dtype=np.int64), np.array([], dtype=np.int64))
        nodes = np.flatnonzero(self._needed())[1:]
        before = np.array([], dtype=np.int64)  # nodes whose keys and values the cache holds
        for start in range(0, len(nodes), self.n_at_once):
            own = nodes[start : start + self.n_at_once]
            path = trie.paths[trie.first_titles[own[0]], : trie.depths[own[0]] - 1]
            yield self._piece(own, path, np.searchsorted(before, path))
            before = np.concatenate((path, own))

    def _needed(self) -> np.ndarray:
        """bool [nodes]: whether what follows the node is asked for, at the node itself or below it."""
        trie = self.trie
        asked = trie.n_children > (1 if self.only_choices else 0)
        n_asked = np.concatenate(([0], asked.cumsum()))
        needed: np.ndarray = n_asked[trie.ends] > n_asked[:-1]
        return needed

    def _piece(self, nodes: np.ndarray, path: np.ndarray, kept: np.ndarray) -> Piece:
        trie = self.trie
        keys = np.concatenate((path, nodes))
        sees = (keys <= nodes[:, None]) & (nodes[:, None] < trie.ends[keys])
        first, last = trie.child_starts[nodes[0]], trie.child_starts[nodes[-1] + 1]
        children = trie.children[first:last]
        if self.only_choices:
            children = children[trie.n_children[trie.parents[children]] > 1]
        rows = np.searchsorted(nodes, trie.parents[children])
        arrays = (trie.tokens[nodes], trie.depths[nodes], kept, sees, children, rows, trie.tokens[children])
        return Piece(*(torch.tensor(array, device=self.device) for array in arrays))


def _keep(cache: Cache, n_prompt: int, offsets: Tensor) -> None:
    """Drops all slots after the prompt but `offsets`, counted from its end."""
    slots = torch.cat((torch.arange(n_prompt, device=offsets.device), offsets + n_prompt))
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, slots], layer.values[:, :, slots]


class RowWalk:
    """Scores of titles by one padded row each, with the whole prompt: for LLMs that take no tree mask.

    Args:
        model: A causal LM.
        trie: The titles.
        pad_token_id: Any token id.
    """

    def __init__(self, model: nn.Module, trie: TitleTrie, pad_token_id: int) -> None:
        self.model, self.trie, self.pad_token_id = model, trie, pad_token_id
        self.device = input_embedding(model).weight.device
        self._titles = [trie.tokens[path[:n]].tolist() for path, n in zip(trie.paths, trie.lengths, strict=True)]

    def costs(self, prompts: Sequence[Sequence[int]], max_batch_tokens: int) -> list[int]:
        """See :class:`TreeWalk`; prompts go one by one, as a prompt's titles fill several batches."""
        return [max_batch_tokens] * len(prompts)

    def run(self, prompts: Sequence[Sequence[int]], inputs: Mapping[str, Tensor], budget: TokenBudget) -> Tensor:
        """Log-probabilities float32 [prompts, nodes], the root's 0.

        `inputs` of the forward pass are [prompts, ...]; `budget` is that of its (rows x longest row).
        """
        found = torch.zeros(len(prompts), self.trie.n_nodes, device=self.device)
        for index, prompt in enumerate(prompts):
            own = {name: values[[index]] for name, values in inputs.items()}

            def run(
                titles: list[int],
                index: int = index,
                prompt: Sequence[int] = prompt,
                own: Mapping[str, Tensor] = own,
            ) -> None:
                nodes, values = self._pass(prompt, titles, own)
                found[index, nodes] = values

            run_batches([len(prompt) + len(title) for title in self._titles], budget, run)
        return found

    def _pass(
        self, prompt: Sequence[int], titles: Sequence[int], inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Nodes of some titles' tokens and their log-probabilities, both [tokens]."""
        rows = [[*prompt, *self._titles[title][:-1]] for title in titles]
        ids, mask = pad_batch(rows, self.pad_token_id, self.device, left=True)
        lengths = torch.from_numpy(self.trie.lengths[list(titles)]).to(self.device)
        steps = torch.arange(int(lengths.max()), device=self.device)
        title_index, columns = (steps < lengths[:, None]).nonzero(as_tuple=True)
        inputs = {name: values.expand(len(rows), *values.shape[1:]) for name, values in inputs.items()}
        ends = ids.shape[1] - lengths[title_index] + columns  # where the token before each one stands
        logits = logits_at(self.model, title_index, ends, ids, mask, inputs=inputs)
        nodes = torch.from_numpy(self.trie.paths[list(titles)]).to(self.device)[title_index, columns]
        tokens = torch.from_numpy(self.trie.tokens).to(self.device)[nodes]
        return nodes, logits.float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
