"""Tokens for item codes: an LLM's vocabulary is extended by rows that alone are trained and saved.

The matrices of the LLM stay as they are, however its adapter changes it: the new rows are weights of their own, which
the input embedding looks up and the output embedding is multiplied with as if they stood behind its last row. So an
adapter's folder holds the new rows and not the LLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.llm.backbone import Backbone
from recbole_llm.llm.parts import input_embedding, output_embedding

NOISE = 0.02  # of the rows of counters, as a share of the old rows' standard deviation


class CodeTokens(nn.Module):
    """The rows of code tokens in the embeddings of an LLM, and the codes of the items.

    Args:
        llm: a causal LM with an input and an output embedding; those are one where the LLM has them tied.
        first: id of the first code token; the ids below are the LLM's own.
        starts: float [tokens, width], where the rows begin, in any space and scale: a row of zeros begins as the mean
            of the old rows and a little noise, any other as a random linear image of it, as long as an old row is on
            average.
        codes: int64 [items, length], the tokens of each item, counted from ``first``; -1 for an item without a code.
        generator: draws the linear image and the noise.

    Attributes:
        codes: as given, kept with the weights, though it does not learn.
        rows_in: float32 [tokens, d], rows of the input embedding.
        rows_out: float32 [tokens, d], those of the output embedding; None where they are the same.
    """

    rows_out: nn.Parameter | None

    def __init__(
        self, llm: nn.Module, first: int, starts: np.ndarray, codes: np.ndarray, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.first = first
        self.codes = nn.Parameter(torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64)), requires_grad=False)
        read, write = input_embedding(llm), output_embedding(llm)
        given = torch.from_numpy(np.asarray(starts, dtype=np.float32))
        self.rows_in = nn.Parameter(_rows_like(read.weight, given, generator))
        is_tied = write.weight is read.weight
        self.rows_out = None if is_tied else nn.Parameter(_rows_like(_weight(write), given, generator))
        self._ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows_in)

    @torch.no_grad()
    def start_rows(self, llm: nn.Module, at: int, starts: np.ndarray, generator: torch.Generator) -> None:
        """Let the rows from ``at`` on restart; see :class:`CodeTokens`.

        Args:
            llm: the LLM, bare or wrapped.
            at: the first of them, from 0.
            starts: float [tokens, width].
            generator: draws image and noise.
        """
        given = torch.from_numpy(np.asarray(starts, dtype=np.float32))
        end = at + len(given)
        self.rows_in[at:end] = _rows_like(input_embedding(llm).weight, given, generator).to(self.rows_in.device)
        if self.rows_out is not None:
            rows = _rows_like(_weight(output_embedding(llm)), given, generator)
            self.rows_out[at:end] = rows.to(self.rows_out.device)

    def attach(self, llm: nn.Module) -> None:
        """Let an LLM, bare or wrapped, read and write the tokens from now on."""
        embedding = input_embedding(llm)
        embedding.register_forward_pre_hook(self._note)
        # First of the hooks: those of gradient checkpointing ask the final embeddings for gradients.
        embedding.register_forward_hook(self._embed, prepend=True)
        output_embedding(llm).register_forward_hook(self._score)

    def _note(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note where code tokens are, and give the embedding ids that it knows."""
        self._ids = args[0]
        return (torch.where(self._ids >= self.first, 0, self._ids), *args[1:])

    def _embed(self, _module: nn.Module, _args: tuple[Any, ...], embedded: Tensor) -> Tensor:
        ids, self._ids = self._ids, None
        assert ids is not None, "_note sees every call first"
        is_code = ids >= self.first
        if not is_code.any():
            return embedded
        rows = self.rows_in[ids[is_code] - self.first].to(embedded.dtype)
        return embedded.index_put(is_code.nonzero(as_tuple=True), rows)

    def _score(self, _module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Logits with those of the code tokens behind them."""
        rows = self.rows_in if self.rows_out is None else self.rows_out
        own = F.linear(args[0], rows.to(args[0].dtype))
        return torch.cat((logits, own.to(logits.dtype)), dim=-1)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"an output embedding with a weight is needed, not {type(module).__name__}")
    return weight


@torch.no_grad()
def _rows_like(old: Tensor, starts: Tensor, generator: torch.Generator) -> Tensor:
    """New rows float32 [tokens, d] beside old ones [vocabulary, d]; see :class:`CodeTokens`."""
    known = old.detach().float().cpu()
    image = torch.randn(starts.shape[1], known.shape[1], generator=generator)
    noise = torch.randn(len(starts), known.shape[1], generator=generator)
    found = starts @ image
    lengths = found.norm(dim=1, keepdim=True)
    means = known.mean(dim=0) + NOISE * known.std() * noise
    scaled = found / lengths.clamp(min=1e-12) * known.norm(dim=1).mean()
    return torch.where(lengths > 0, scaled, means).to(old.device)


@dataclass(frozen=True)
class CodedBackbone(Backbone):
    """A backbone whose vocabulary has code tokens behind its own.

    Attributes:
        first_code: id of the first one.
        code_names: how each is written.
    """

    first_code: int = 0
    code_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, backbone: Backbone, code_names: Sequence[str]) -> CodedBackbone:
        """A backbone with code tokens after the last row of its embedding."""
        own = {field.name: getattr(backbone, field.name) for field in fields(Backbone)}
        first = backbone.model.get_input_embeddings().weight.shape[0]
        return cls(**own, first_code=first, code_names=tuple(code_names))

    def decode(self, token_ids: Sequence[int]) -> str:
        """See :class:`Backbone`; codes are written by their names."""
        parts: list[str] = []
        plain: list[int] = []
        for token in [*token_ids, None]:
            if token is not None and token < self.first_code:
                plain.append(token)
                continue
            parts += [super().decode(plain)] if plain else []
            plain = []
            parts += [] if token is None else [self.code_names[token - self.first_code]]
        return "".join(parts)
