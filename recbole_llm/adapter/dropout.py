"""Dropout drawn by row and token, so that it does not depend on which rows share a forward pass.

PyTorch draws masks one after the other from a stream: two rows in one pass are dropped out otherwise than in two. Here
a mask is a function of the step, the layer, the token and the feature. A token is known by its row and by the tokens up
to it, whatever stands beside it: padding, other rows, other answers to the same prompt. Rows that are computed as one
tree share tokens, and there the tokens up to one are all there is to know of it.

A token's 64 bits are mixed well (splitmix64), and a feature's bits follow of these by one multiplication and addition
modulo 2**32, in which each token's mask is random and two features are independent of one another (multiply-add
hashing; Dietzfelbinger, STACS 1996): two cheap operations on whole numbers for each number that is dropped out or kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64
_BASE = 0xD1342543DE82EF95  # of the polynomial whose value tells a sequence of tokens
_WORD = 2**64
NOBODY = -1
"""Row of a token that is of no row in particular."""


def path_terms(tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What each token adds to the hash of the sequences that go through it; a hash is the sum of its tokens' terms.

    Args:
        tokens: int64 ids.
        positions: int64 of the same shape, from 0.

    Returns:
        uint64 of the same shape; sums wrap around.

    Example:
        >>> one, other = (path_terms(np.array(own), np.arange(2)).sum() for own in ([5, 6], [6, 5]))
        >>> bool(one == other)
        False
    """
    powers = np.cumprod(np.full(int(positions.max()) + 1, _BASE, dtype=np.uint64)) if positions.size else np.uint64(1)
    found: NDArray[np.uint64] = _mix_array(tokens.astype(np.uint64)) * np.asarray(powers)[positions]
    return found


class TokenDraws:
    """What is drawn by row and token in a model's training; all its modules of dropout read this one object.

    A step says what it draws from, a pass whose rows it has, and the layout of its tokens which tokens they are. What
    was said last stays, as gradient checkpointing computes a pass again in the backward pass. Without a step, modules
    draw as PyTorch's do.

    Attributes:
        salts: by module, what sets its draws apart; of its name.
        random_gates: whether gates of rows are drawn as well.
    """

    def __init__(self) -> None:
        self.salts: list[int] = []
        self.random_gates = False
        self._seed: int | None = None
        self._rows: NDArray[np.int64] | None = None
        self._by_path = False
        self._tokens: Tensor | None = None

    def facts(self) -> dict[str, str]:
        """The random draws of a training, as facts of its stage; empty without dropout."""
        return {"dropout": "by row and token"} if self.salts or self.random_gates else {}

    @property
    def is_drawing(self) -> bool:
        """Whether a pass of now would draw by row and token."""
        return self._seed is not None and self._rows is not None and bool(self.salts)

    @contextmanager
    def step(self, seed: int) -> Iterator[None]:
        """Inside, passes and their backward passes draw from this seed.

        Args:
            seed: seed of the optimiser step, at least 0.
        """
        self._seed = seed
        try:
            yield
        finally:
            self._seed = self._rows = self._tokens = None

    def use_rows(self, rows: Sequence[int], by_path: bool = False) -> None:
        """Say whose rows the next pass has.

        Args:
            rows: numbers of the rows, in the order of their prompts.
            by_path: whether tokens are known by the tokens up to them alone, as those of trees are.
        """
        self._rows, self._by_path = np.asarray(rows, dtype=np.int64), by_path

    def use_tokens(self, paths: Tensor, lines: Sequence[int] | None = None) -> None:
        """Say which tokens the next forward pass has; without a step and its rows, nothing is noted.

        Args:
            paths: int64 [lines, tokens], hashes of the tokens up to each.
            lines: the prompt of each line, as an index in the rows; ``NOBODY`` where a line is of no row. By default
                line i is that of row i.
        """
        if self._seed is None or self._rows is None or not self.salts:
            return
        numbers = np.arange(len(paths)) if lines is None else np.asarray(lines)
        of_row = np.full(len(numbers), NOBODY, dtype=np.int64)
        if not self._by_path:
            known = numbers >= 0
            of_row[known] = self._rows[numbers[known]]
        rows = _mix_array(of_row.astype(np.uint64) + np.uint64(mix(self._seed)))
        keys = mix_tensor(paths ^ torch.from_numpy(rows.view(np.int64)).to(paths.device)[:, None])
        salts = torch.tensor([_signed(salt) for salt in self.salts], device=paths.device)
        self._tokens = mix_tensor(keys ^ salts[:, None, None])

    def forget_tokens(self) -> None:
        """The next forward pass has unknown tokens."""
        self._tokens = None

    def of_tokens(self, layer: int, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
        """Two random numbers of each token for a layer.

        Args:
            layer: its index in ``salts``.
            shape: shape of what is dropped out, without its features: [rows, tokens], or those one after the other.

        Returns:
            int32 of that shape, both; None where nothing is known of these tokens.
        """
        if self._tokens is None or shape.numel() != self._tokens[0].numel():
            return None
        found = self._tokens[layer].view(torch.int32).view(*shape, 2)
        return found[..., 0], found[..., 1]

    def of_rows(self, name: str, count: int, width: int) -> NDArray[np.uint64] | None:
        """Random numbers of the rows of the pass, for what is computed once per row.

        Args:
            name: name of what is drawn.
            count: number of rows; a multiple of those of the pass where these follow one another several times.
            width: numbers for each.

        Returns:
            uint64 [count, width]; None where nothing is known of these rows.
        """
        if self._seed is None or self._rows is None or not len(self._rows) or count % len(self._rows):
            return None
        rows = np.tile(self._rows, count // len(self._rows)).astype(np.uint64)
        keys = _mix_array(_mix_array(rows + np.uint64(mix(self._seed))) ^ np.uint64(salt_of(name)))
        columns = (np.arange(1, width + 1, dtype=np.uint64)) * np.uint64(_INCREMENT)
        return _mix_array(keys[:, None] + columns)


class TokenDropout(nn.Dropout):
    """Dropout by row and token (see the module); PyTorch's own where the tokens are unknown.

    Args:
        p: share that is dropped out.
        draws: tells of the tokens.
        layer: index of this module in ``draws.salts``.
    """

    def __init__(self, p: float, draws: TokenDraws, layer: int) -> None:
        super().__init__(p)
        self.draws, self.layer = draws, layer
        self._features: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch.nn
        """``input`` [rows, tokens, features] with a share p of its numbers 0, the others divided by 1 - p."""
        if not self.training or not self.p:
            return input
        tokens = self.draws.of_tokens(self.layer, input.shape[:-1]) if input.ndim > 1 else None
        if tokens is None:
            return super().forward(input)
        kept = kept_features(*tokens, self._of_features(input), self.p)
        found: Tensor = input.mul(kept).mul_(1 / (1 - self.p))
        return found

    def _of_features(self, x: Tensor) -> Tensor:
        """A factor of each feature. Returns: int32 [features]."""
        if self._features is None or len(self._features) != x.shape[-1] or self._features.device != x.device:
            self._features = feature_factors(x.shape[-1]).to(x.device)
        return self._features


def kept_features(factors: Tensor, summands: Tensor, features: Tensor, p: float) -> Tensor:
    """Which numbers stay. Returns: bool [tokens..., features].

    Args:
        factors: int32 [tokens...], of each token.
        summands: int32 [tokens...], of each token, independent of the factors.
        features: int32 [features], odd.
        p: share that is dropped out, in [0, 1).
    """
    least = -(2**31) + round(p * 2**32)
    return torch.addcmul(summands[..., None], factors[..., None], features) >= least


def feature_factors(count: int) -> Tensor:
    """Odd factors of features, always the same. Returns: int32 [count]."""
    found = _mix_array(np.arange(count, dtype=np.uint64)) | np.uint64(1)
    return torch.from_numpy((found & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32))


def uniform_numbers(words: NDArray[np.uint64]) -> Tensor:
    """Numbers in [0, 1) from 64 bits each. Returns: float64 of the same shape.

    Example:
        >>> uniform_numbers(np.array([0, 2**63], dtype=np.uint64)).tolist()
        [0.0, 0.5]
    """
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal_numbers(words: NDArray[np.uint64]) -> Tensor:
    """Standard normal numbers from 64 bits each, by the inverse of the distribution. Returns: float64."""
    found: Tensor = torch.special.ndtri(uniform_numbers(words).clamp(min=2.0**-54))
    return found


def draw_by_token(model: nn.Module) -> TokenDraws:
    """Let a model's modules of dropout draw by row and token: LoRA's, the LLM's own, and what gates draw.

    Modules in ``model`` of the class ``torch.nn.Dropout`` are replaced; they hold no weights. What a model drops out by
    a function inside its own code, such as the weights of fused attention, stays PyTorch's.

    Args:
        model: changed in place.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 64), nn.Dropout(0.5))
        >>> draws, x = draw_by_token(model), torch.ones(2, 3, 2)
        >>> paths = torch.arange(6).view(2, 3)
        >>> with draws.step(seed=1), torch.no_grad():
        ...     draws.use_rows([7, 8])
        ...     draws.use_tokens(paths)
        ...     both = model(x)
        ...     draws.use_rows([8])
        ...     draws.use_tokens(paths[1:])
        ...     alone = model(x[1:])
        >>> torch.equal(both[1:] == 0, alone == 0)
        True
    """
    draws = TokenDraws()
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout and module.p:
            own = TokenDropout(module.p, draws, len(draws.salts))
            draws.salts.append(salt_of(name))
            model.set_submodule(name, own.train(module.training))
        elif hasattr(module, "row_draws"):
            module.row_draws = draws
            draws.random_gates |= bool(module.is_random)
    return draws


def salt_of(name: str) -> int:
    """64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mix(value: int) -> int:
    """Splitmix64 of a whole number."""
    return int(_mix_array(np.array([value % _WORD], dtype=np.uint64))[0])


def mix_tensor(values: Tensor) -> Tensor:
    """Splitmix64 of each number, int64 in place of unsigned ones."""
    x = values + _signed(_INCREMENT)
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(_FIRST)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(_SECOND)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = values + np.uint64(_INCREMENT)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return word - _WORD if word >= _WORD // 2 else word
