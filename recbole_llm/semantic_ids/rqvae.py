"""RQ-VAE: an autoencoder whose bottleneck is the sum of one codeword per level (Zeghidour et al., 2107.03312; TIGER).

Always in float32, whatever the LLM computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.semantic_ids.codes import collision_rate
from recbole_llm.semantic_ids.kmeans import residual_kmeans
from recbole_llm.semantic_ids.quantise import assignment_probabilities, quantisation_loss, residual_quantise

LEAST_HIDDEN = 48
LAST_TEMPERATURE = 0.05
COLLISIONS = 1.05  # of the lowest collision rate, up to which an epoch may be kept
CHECK_EVERY = 10  # epochs
BATCH, LEARNING_RATE, WEIGHT_DECAY = 1024, 1e-3, 1e-4
Assignment = Literal["argmin", "sample"]


class RQVAE(nn.Module):
    """Vectors to codes and back: encoder d - h - width, residual codewords, decoder width - h - d; h = max(48, d / 2).

    Args:
        size: entries of a vector, d.
        width: width of a codeword.
        levels: codes of a vector.
        n_codes: codewords of a level.
        generator: generator of the weights.
    """

    def __init__(self, size: int, width: int, levels: int, n_codes: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(LEAST_HIDDEN, size // 2)
        self.encoder = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.decoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.codebooks = nn.Parameter(torch.empty(levels, n_codes, width))
        for layer in (*self.encoder, *self.decoder):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.uniform_(self.codebooks, -1 / n_codes, 1 / n_codes, generator=generator)

    @torch.no_grad()
    def codes(self, vectors: Tensor) -> Tensor:
        """The nearest codewords. Args: vectors float32 [n, d]. Returns: int64 [n, levels]."""
        found: Tensor = residual_quantise(self.encoder(vectors), self.codebooks)[0]
        return found

    @torch.no_grad()
    def reconstruction_error(self, vectors: Tensor) -> float:
        """Mean square between vectors [n, d] and what their codewords decode to."""
        found = residual_quantise(self.encoder(vectors), self.codebooks)[2]
        return float((self.decoder(found) - vectors).square().mean())

    @torch.no_grad()
    def start(self, vectors: Tensor, seed: int) -> None:
        """Codewords are the cluster centres of encoded vectors [n, d], level by level; called once."""
        levels, n_codes, _ = self.codebooks.shape
        found = residual_kmeans(self.encoder(vectors).cpu().numpy(), levels, n_codes, seed)
        self.codebooks.copy_(torch.from_numpy(found))

    def loss(self, vectors: Tensor, assign: Callable[[Tensor, Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction and quantisation, the latter the mean over levels and width.

        Args:
            vectors: float32 [n, d].
            assign: draws codes int64 [n] of residuals [n, width] among codewords; None takes the nearest.

        Returns:
            A scalar; int64 [n, levels], the codes that were taken.
        """
        latent = self.encoder(vectors)
        with torch.no_grad():
            codes = residual_quantise(latent, self.codebooks)[0] if assign is None else self._drawn(latent, assign)
        words = torch.stack([book[codes[:, level]] for level, book in enumerate(self.codebooks)]).sum(dim=0)
        decoded = self.decoder(latent + (words - latent).detach())  # straight-through
        quantisation = quantisation_loss(latent, self.codebooks, codes, reduction="mean")
        return (decoded - vectors).square().mean() + quantisation, codes

    def _drawn(self, latent: Tensor, assign: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        residual, codes = latent, []
        for book in self.codebooks:
            codes.append(assign(residual, book))
            residual = residual - book[codes[-1]]
        return torch.stack(codes, dim=1)


def temperature_at(epoch: int, epochs: int, first: float) -> float:
    """Temperature of an epoch, counted from 0: it falls geometrically from the first to ``LAST_TEMPERATURE``.

    Example:
        >>> [round(temperature_at(epoch, 3, 1.0), 3) for epoch in range(3)]
        [1.0, 0.224, 0.05]
    """
    if first <= LAST_TEMPERATURE or epochs < 2:
        return first
    return first * math.exp(math.log(LAST_TEMPERATURE / first) * epoch / (epochs - 1))


def draw_codes(temperature: float, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """Draws a codeword of each residual by softmax(-squared distance / temperature)."""

    def draw(residuals: Tensor, codebook: Tensor) -> Tensor:
        probabilities = assignment_probabilities(residuals, codebook, temperature)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return draw


@dataclass(frozen=True)
class _Kept:
    collisions: float
    error: float
    state: dict[str, Tensor]


def fit_rqvae(
    vectors: np.ndarray,
    *,
    width: int,
    levels: int,
    n_codes: int,
    epochs: int,
    seed: int,
    assign: Assignment = "argmin",
    temperature: float = 1.0,
) -> RQVAE:
    """Train an RQ-VAE on all vectors.

    AdamW, batches of 1,024. Codewords start as cluster centres; a codeword that no vector took in an epoch becomes a
    random residual. Of the epochs looked at, every tenth and the last, the one is kept that rebuilds best among those
    whose collision rate is within 5 % of the lowest.

    Args:
        vectors: float [n, d].
        width: width of a codeword.
        levels: codes of a vector.
        n_codes: codewords of a level, at most n.
        epochs: number of epochs.
        seed: seed of everything random.
        assign: codes in training.
        temperature: at which ``sample`` begins.

    Example:
        >>> model = fit_rqvae(np.eye(8), width=4, levels=2, n_codes=4, epochs=2, seed=0)
        >>> model.codes(torch.eye(8)).shape
        torch.Size([8, 2])
    """
    data = torch.as_tensor(np.asarray(vectors), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    model = RQVAE(data.shape[1], width, levels, n_codes, generator)
    model.start(data, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    kept: list[_Kept] = []
    for epoch in range(epochs):
        drawn = None
        if assign == "sample":
            drawn = draw_codes(temperature_at(epoch, epochs, temperature), generator)
        is_last = epoch + 1 == epochs
        train_epoch(model, optimizer, data, generator, drawn, revive=not is_last)
        if is_last or (epoch + 1) % CHECK_EVERY == 0:
            kept = _with(kept, _looked_at(model, data))
    lowest = min(one.collisions for one in kept)
    best = min((one for one in kept if one.collisions <= COLLISIONS * lowest), key=lambda one: one.error)
    model.load_state_dict(best.state)
    return model.eval()


def train_epoch(
    model: RQVAE,
    optimizer: torch.optim.Optimizer,
    vectors: Tensor,
    generator: torch.Generator,
    assign: Callable[[Tensor, Tensor], Tensor] | None = None,
    revive: bool = True,
    weight: float = 1.0,
) -> None:
    """One pass over vectors float32 [n, d] in random order; then, if asked, unused codewords restart.

    Args:
        model: trained in place.
        optimizer: over its parameters.
        vectors: vectors that it learns to quantise.
        generator: generator of order and new codewords.
        assign: see :meth:`RQVAE.loss`.
        revive: whether a codeword that no vector took becomes a random residual.
        weight: weight of the loss.
    """
    used = torch.zeros(model.codebooks.shape[:2], dtype=torch.bool)
    for batch in _batches(len(vectors), generator):
        optimizer.zero_grad(set_to_none=True)
        loss, codes = model.loss(vectors[batch], assign)
        (weight * loss).backward()
        optimizer.step()
        used[torch.arange(codes.shape[1]), codes] = True
    if revive:
        _revive(model, vectors, used, generator)


def train_steps(model: RQVAE, vectors: Tensor, steps: int, seed: int, weight: float = 1.0) -> None:
    """Some more steps from the present weights and codewords; nothing restarts, and codes are the nearest.

    Args:
        model: trained in place, in eval mode and without gradients afterwards.
        vectors: float32 [n, d].
        steps: steps of at most 1,024 vectors each.
        seed: seed of the order.
        weight: weight of the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    done = 0
    while done < steps:
        for batch in list(_batches(len(vectors), generator))[: steps - done]:
            optimizer.zero_grad(set_to_none=True)
            (weight * model.loss(vectors[batch])[0]).backward()
            optimizer.step()
            done += 1
    optimizer.zero_grad(set_to_none=True)
    model.eval()


def _batches(n_rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.randperm(n_rows, generator=generator).split(BATCH)


@torch.no_grad()
def _revive(model: RQVAE, vectors: Tensor, used: Tensor, generator: torch.Generator) -> None:
    if used.all():
        return
    latent = model.encoder(vectors)
    _, residuals, _ = residual_quantise(latent, model.codebooks)
    before = torch.cat([latent[:, None], residuals[:, :-1]], dim=1)  # what each level was given
    for level in range(len(used)):
        dead = (~used[level]).nonzero()[:, 0]
        chosen = torch.randint(len(vectors), (len(dead),), generator=generator)
        model.codebooks[level, dead] = before[chosen, level]


def _looked_at(model: RQVAE, vectors: Tensor) -> _Kept:
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return _Kept(collision_rate(model.codes(vectors)), model.reconstruction_error(vectors), state)


def _with(kept: list[_Kept], new: _Kept) -> list[_Kept]:
    """Those that another may still be kept before: neither more collisions nor a larger error than another's."""
    found = [one for one in kept if one.collisions < new.collisions or one.error <= new.error]
    beaten = any(one.collisions <= new.collisions and one.error <= new.error for one in kept)
    return found if beaten else [*found, new]
