"""SOLID's network beside its backbone (arXiv 2408.00123): conditions, generated heads and classes, without RecBole."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.semantic_ids.codebook import dynamic_head
from recbole_llm.semantic_ids.kmeans import kmeans
from recbole_llm.semantic_ids.quantise import nearest_codes

ITEM_STD, SEMANTIC_STD = 1e-3, 0.01


class SequenceVectors(nn.Module):
    """What a sequence of embedded ids is before it makes a condition: position added, then a tanh layer.

    Args:
        width: width of the embeddings.
        max_length: largest length of a sequence.
    """

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.position = nn.Embedding(max_length, width)
        self.layer = nn.Linear(width, width)

    def forward(self, embedded: Tensor) -> Tensor:
        """Vectors of embedded ids [b, t, d]. Returns: [b, t, d] in (-1, 1)."""
        places = torch.arange(embedded.shape[1], device=embedded.device)
        found: Tensor = torch.tanh(self.layer(embedded + self.position(places)))
        return found


class Condition(nn.Module):
    """A sequence as one vector: the state of a GRU at its last entry, through two layers.

    Args:
        width: width of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1), nn.Linear(width, width))

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Condition of vectors [b, t, d], of which the first int64 [b] of a sequence are real. Returns: [b, d]."""
        states, _ = self.gru(vectors)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        found: Tensor = self.layers(states.gather(1, last)[:, 0])
        return found


class GeneratedHead(nn.Module):
    """Layers whose weights are generated for each row: by classes, and within ``clip`` by items.

    ``W_l = clip(c1 P_l + a_l) + (c2 Q_l + b_l)``, the bias likewise; b_l begins as the identity, so that the head
    begins near ``tanh(x)``. In the public code the matrices lie in plain lists, where no optimiser finds them; here all
    are parameters.

    Args:
        width: width of states and conditions.
        layers: generated ones; all but the last are followed by tanh.
        clip: clip of the items' branch; None has no such branch.
    """

    def __init__(self, width: int, layers: int = 2, clip: float | None = 0.01) -> None:
        super().__init__()
        self.width, self.n_layers, self.clip = width, layers, clip
        eye = torch.eye(width).flatten()
        self.semantic = nn.ParameterDict(
            {
                "weight_map": SEMANTIC_STD * torch.randn(layers, width, width * width),
                "weight": eye.repeat(layers, 1),
                "bias_map": SEMANTIC_STD * torch.randn(layers, width, width),
                "bias": torch.zeros(layers, width),
            }
        )
        if clip is not None:
            self.item = nn.ParameterDict(
                {
                    "weight_map": ITEM_STD * torch.randn(layers, width, width * width),
                    "weight": ITEM_STD * torch.randn(layers, width * width),
                    "bias_map": ITEM_STD * torch.randn(layers, width, width),
                    "bias": ITEM_STD * torch.randn(layers, width),
                }
            )

    def _generated(self, maps: nn.ParameterDict, condition: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        weight = condition @ maps["weight_map"][layer] + maps["weight"][layer]
        bias = condition @ maps["bias_map"][layer] + maps["bias"][layer]
        return weight.view(-1, self.width, self.width), bias

    def forward(self, x: Tensor, by_classes: Tensor, by_items: Tensor | None = None) -> Tensor:
        """A state through the head of its row.

        Args:
            x: [b, d].
            by_classes: [b, d], condition of the classes.
            by_items: [b, d], condition of the items; None where the head has no such branch.

        Returns:
            [b, d].
        """
        for layer in range(self.n_layers):
            weight, bias = self._generated(self.semantic, by_classes, layer)
            if by_items is None or self.clip is None:
                x = torch.einsum("bd,bde->be", x, weight) + bias
            else:
                own = self._generated(self.item, by_items, layer)
                x = dynamic_head(x, *own, weight, bias, self.clip)
            x = torch.tanh(x) if layer < self.n_layers - 1 else x
        return x


def default_classes(n_items: int) -> int:
    """One class for every 20 items, from 2 to 256.

    Example:
        >>> [default_classes(n) for n in (10, 1000, 100_000)]
        [2, 50, 256]
    """
    return int(np.clip(n_items // 20, 2, 256))


def classes_of_sets(categories: Sequence[Collection[Hashable]], most: int, seed: int = 0) -> np.ndarray:
    """Items of one set of categories are a class; where there are more sets than classes, k-means joins like sets.

    Args:
        categories: categories of every item by item id; item 0 is padding.
        most: classes, at most.
        seed: seed of k-means.

    Returns:
        int64 [items], from 1 on in order of the first item; 0 for padding.

    Example:
        >>> classes_of_sets([[], ["a"], ["b", "a"], [], ["a", "b"]], most=8).tolist()
        [0, 1, 2, 3, 2]
    """
    sets = [frozenset(own) for own in categories[1:]]
    numbers = {own: number for number, own in enumerate(dict.fromkeys(sets))}
    if len(numbers) > most:
        names = {name: column for column, name in enumerate(dict.fromkeys(name for own in categories for name in own))}
        table = np.zeros((len(categories), len(names)), dtype=np.float32)
        for item, own in enumerate(categories):
            table[item, [names[name] for name in own]] = 1
        return classes_of_vectors(table, most, seed)
    return np.array([0, *(1 + numbers[own] for own in sets)], dtype=np.int64)


def classes_of_vectors(vectors: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """k-means of items' unit vectors (FAISS).

    Args:
        vectors: float [items, d]; item 0 is padding.
        most: classes; fewer where there are fewer different vectors.
        seed: seed of k-means.

    Returns:
        int64 [items], from 1 on in order of the first item; 0 for padding.

    Raises:
        InputError: FAISS is not installed.
    """
    points = np.ascontiguousarray(vectors[1:], dtype=np.float32)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    count = min(most, len(np.unique(points, axis=0)))
    centres = kmeans(points, count, seed, key="semantic_source")
    found = nearest_codes(torch.from_numpy(points), torch.from_numpy(centres)).tolist()
    numbers = {old: new for new, old in enumerate(dict.fromkeys(found), start=1)}
    return np.array([0, *(numbers[old] for old in found)], dtype=np.int64)
