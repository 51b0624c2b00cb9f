"""The codes of a catalogue as stages: item vectors, then a quantiser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from recbole_llm.disk import write_json
from recbole_llm.hashing import hash_arrays, hash_json
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.semantic_ids.rqvae import RQVAE
from recbole_llm.semantic_ids.settings import CodeSettings
from recbole_llm.semantic_ids.table import Quantiser, code_summary, standardised, unique_codes
from recbole_llm.stages import Stage

VECTORS, CODES, CODEBOOKS, SUMMARY, TOWER = (
    "vectors.npy",
    "codes.npy",
    "codebooks.npy",
    "codes.json",
    "tower.safetensors",
)


class TextVectorStage(Stage[np.ndarray]):
    """The mean state of each item's or user's text, by the untuned LLM: float32 [texts, d].

    Args:
        encoder: encoder of texts.
        texts: one for each.
        llm: what tells the LLM from others, as plain data.
        progress: whether to show a progress bar.
        name: name of the stage.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        texts: list[str],
        llm: Mapping[str, Any],
        progress: bool = False,
        name: str = "item-vectors",
    ) -> None:
        self._encoder, self._texts, self._llm, self._progress = encoder, texts, dict(llm), progress
        self.name = name

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"llm": self._llm, "encoder": self._encoder.fingerprint_facts(), "texts": hash_json(self._texts)}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        np.save(folder / VECTORS, self._encoder.encode(self._texts, progress=self._progress))

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`."""
        vectors: np.ndarray = np.load(folder / VECTORS)
        return vectors


@dataclass(frozen=True)
class ItemCodes:
    """What a quantiser made of items.

    Attributes:
        codes: int64 [n, levels + 1], no two alike; the last column counts the items of one code.
        codebooks: float32 [levels, codes, width].
        summary: see :func:`recbole_llm.semantic_ids.table.code_summary`, with ``reconstruction_error``.
        tower: the autoencoder of ``rqvae``; None for ``rkmeans``.
    """

    codes: np.ndarray
    codebooks: np.ndarray
    summary: dict[str, Any]
    tower: RQVAE | None = None


class CodeStage(Stage[ItemCodes]):
    """Codes of items; their vectors are asked for where the codes are not there yet.

    Args:
        settings: settings of the quantiser.
        vectors: gives the vectors, float [n, d].
        source: what the vectors depend on, as plain data.
        seed: seed of the quantiser.
        name: name of the stage.
        n_codes: codewords of a level, however few the vectors are; by default as the settings say.
    """

    name = "item-codes"

    def __init__(
        self,
        settings: CodeSettings,
        vectors: Callable[[], np.ndarray],
        source: Mapping[str, Any],
        seed: int,
        name: str = "item-codes",
        n_codes: int | None = None,
    ) -> None:
        self._settings, self._vectors, self._source, self._seed = settings, vectors, dict(source), seed
        self.name, self._n_codes = name, n_codes

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = {} if self._n_codes is None else {"n_codes": self._n_codes}
        return {"settings": self._settings.facts(), "source": self._source, "seed": self._seed, **own}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        points = standardised(self._vectors())
        quantiser = Quantiser.fit(points, self._settings, self._seed, self._n_codes)
        codes = unique_codes(quantiser.codes(points))
        np.save(folder / CODES, codes)
        np.save(folder / CODEBOOKS, quantiser.codebooks)
        if quantiser.autoencoder is not None:
            state = quantiser.autoencoder.state_dict()
            save_file({name: weight.contiguous() for name, weight in state.items()}, folder / TOWER)
        summary = code_summary(codes, quantiser.codebooks.shape[1])
        write_json(folder / SUMMARY, {**summary, "reconstruction_error": quantiser.error(points)})

    def load(self, folder: Path) -> ItemCodes:
        """See :class:`Stage`."""
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        tower = load_tower(folder / TOWER) if (folder / TOWER).is_file() else None
        return ItemCodes(np.load(folder / CODES), np.load(folder / CODEBOOKS), summary, tower)


def load_tower(file: Path) -> RQVAE:
    """An autoencoder from its weights."""
    state = load_file(file)
    size, (levels, n_codes, width) = state["encoder.0.weight"].shape[1], state["codebooks"].shape
    model = RQVAE(size, width, levels, n_codes, torch.Generator().manual_seed(0))
    model.load_state_dict(state)
    return model.eval()


def vectors_digest(vectors: np.ndarray) -> str:
    """What tells vectors from others."""
    return hash_arrays(np.ascontiguousarray(vectors))
