"""Nearest-neighbour search in single precision: FAISS on CPU or GPU, exact or approximate, or torch."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any

import numpy as np
import torch

from recbole_llm.errors import InputError
from recbole_llm.grounding.distances import Points, blocks
from recbole_llm.lazy import load_faiss

log = logging.getLogger(__name__)

_KEPT_ELEMENTS = 2**28  # of the centred copy of all points, at most: 1 GB
_BLOCK_ELEMENTS = 2**24  # of one block of points that are not kept: 64 MB
_TABLE_ELEMENTS = 2**24  # of one table of queries x points of the torch fallback: 64 MB
_TRAINING_ROWS = 2**17  # that an index learns its cells and codes from, at most
_GPU_NEIGHBOURS = 2048  # more than these FAISS does not search for on a GPU


class Engine(ABC):
    """Finds the points nearest to queries, up to rounding in single precision.

    Args:
        points: what is searched.
    """

    exact = True
    """Whether nothing but rounding can hide a nearest point."""

    def __init__(self, points: Points) -> None:
        self.points = points

    @abstractmethod
    def nearest(self, centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest points of each query.

        Args:
            centred: float32 ``[queries, d]``, minus the mean of the points.
            count: how many, at most as many as there are points.

        Returns:
            Squared distances, ascending, and points (-1 where none was found), both ``[queries, count]``.
        """


class ExactEngine(Engine):
    """Looks at all points, block by block where no copy of them is kept."""

    def nearest(self, centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Engine`."""
        squared, found = np.empty((len(centred), 0), np.float32), np.empty((len(centred), 0), np.int64)
        for block in blocks(len(self.points), 1, self._block_length(len(centred))):
            own, indices = self._search(centred, block, min(count, block.stop - block.start))
            squared, found = _merge((squared, own), (found, indices + block.start), count)
        return squared, found

    @abstractmethod
    def _block_length(self, n_queries: int) -> int:
        """Points that are considered together."""

    @abstractmethod
    def _search(self, centred: np.ndarray, block: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`nearest`, among the points of a block, counted from its start."""


class KnnEngine(ExactEngine):
    """``faiss.knn`` on the CPU."""

    def _block_length(self, n_queries: int) -> int:
        return len(self.points) if self.points.kept else max(1, _BLOCK_ELEMENTS // self.points.dimension)

    def _search(self, centred: np.ndarray, block: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
        squared, indices = load_faiss().knn(centred, self.points.centred(block), count)
        return squared, indices


class TorchEngine(ExactEngine):
    """``torch.topk`` on the CPU, where FAISS is not installed."""

    def _block_length(self, n_queries: int) -> int:
        return max(1, _TABLE_ELEMENTS // max(1, n_queries))

    def _search(self, centred: np.ndarray, block: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            scores = torch.from_numpy(self.points.half_scores(centred, block))
        values, indices = torch.topk(scores, count, dim=1)
        norms = np.einsum("nd,nd->n", centred, centred, dtype=np.float64)
        return norms[:, None] - 2.0 * values.numpy().astype(np.float64), indices.numpy()


def _merge(
    squared: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of two lists per query."""
    if not squared[0].shape[1]:
        return squared[1], found[1]
    distances, indices = np.concatenate(squared, axis=1), np.concatenate(found, axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


class FaissEngine(Engine):
    """A FAISS index of a factory string, on a GPU where there is one to use.

    Args:
        points: what is searched.
        factory: FAISS factory string.
        parameters: FAISS search parameters, such as ``nprobe=16``.
        device: ``cpu``, or a CUDA device such as ``cuda:0``.

    Raises:
        InputError: FAISS refuses them.
    """

    def __init__(self, points: Points, factory: str, parameters: str, device: str) -> None:
        super().__init__(points)
        self.exact = factory == "Flat"
        self._faiss = load_faiss()
        try:
            self._index = self._build(factory, parameters, device)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                "faiss_index",
                f"faiss refuses the index {factory!r} ({parameters or 'no search parameters'}) for {len(points)} "
                f"items of width {points.dimension}: {reason}; use 'Flat' (exact) or a factory string such as 'HNSW32'",
            ) from error

    def _build(self, factory: str, parameters: str, device: str) -> Any:
        faiss, points = self._faiss, self.points
        index = faiss.index_factory(points.dimension, factory)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        index = self._moved(index, factory, device)
        if not index.is_trained:
            index.train(self._training_rows())
        for block in blocks(len(points), points.dimension, _BLOCK_ELEMENTS):
            index.add(points.centred(block))
        return index

    def _moved(self, index: Any, factory: str, device: str) -> Any:
        """The empty index on the GPU it is to be filled on, if it is to be on one and FAISS has its like there."""
        self._on_gpu = False
        number = gpu_number(self._faiss, device)
        if number is None:
            return index
        self._resources = self._faiss.StandardGpuResources()
        try:
            index = self._faiss.index_cpu_to_gpu(self._resources, number, index)
        except RuntimeError:
            log.warning("faiss_index=%s cannot run on a GPU; searching on the CPU", factory)
            return index
        self._on_gpu = True
        return index

    def _training_rows(self) -> np.ndarray:
        """Points to learn cells and codes from: all, or so many at even distances."""
        chosen = np.arange(0, len(self.points), -(-len(self.points) // _TRAINING_ROWS))
        rows = np.empty((len(chosen), self.points.dimension), dtype=np.float32)
        for block in blocks(len(self.points), self.points.dimension, _BLOCK_ELEMENTS):
            own = slice(*np.searchsorted(chosen, (block.start, block.stop)))
            rows[own] = self.points.centred(block)[chosen[own] - block.start]
        return rows

    def nearest(self, centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Engine`."""
        if self._on_gpu and count > _GPU_NEIGHBOURS:
            return KnnEngine(self.points).nearest(centred, count)
        squared, indices = self._index.search(centred, count)
        return squared, indices


def find_engine(embeddings: np.ndarray, rows: np.ndarray, factory: str, parameters: str, device: str) -> Engine:
    """The engine of a factory string on a device; without FAISS, torch, which is exact whatever the string is.

    Args:
        embeddings: see :class:`Points`.
        rows: see :class:`Points`.
        factory: see :class:`FaissEngine`.
        parameters: see :class:`FaissEngine`.
        device: see :class:`FaissEngine`.
    """
    faiss = load_faiss()
    if faiss is not None and (factory != "Flat" or gpu_number(faiss, device) is not None):
        return FaissEngine(Points(embeddings, rows, keep=False), factory, parameters, device)
    if faiss is None:
        log.warning("faiss is not installed: searching with the exact torch fallback (pip install faiss-cpu)")
    return exact_engine(Points(embeddings, rows, keep=len(rows) * embeddings.shape[1] <= _KEPT_ELEMENTS))


def exact_engine(points: Points) -> ExactEngine:
    """The engine that looks at all points, on the CPU."""
    return TorchEngine(points) if load_faiss() is None else KnnEngine(points)


def gpu_number(faiss: ModuleType, device: str) -> int | None:
    """The GPU that FAISS is to use: that of the device, where the device is one and FAISS is built for GPUs."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return None
    return int(number or 0)
