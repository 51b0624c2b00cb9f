"""Pictures in tests: most runs draw some, and drawing one takes as long as fine-tuning the smallest LLM.

Of a picture an empty one of the same size is written. Its figure is made where no earlier one showed data of the same
form: none, one or several values, some of them missing, infinite or negative. :func:`drawn` is for tests that look
inside, as those of each kind of picture do (``tests/report``), :func:`undrawn` for processes that end after a command.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from recbole_llm.report import code_plot, comparison_plots, coreset_plot, goracs_plot, plots, rerank_plot

# What they show is in their arguments, but for the learning curves: those are in files.
FIGURES = {
    code_plot: ("code_figure",),
    comparison_plots: ("comparison_figure", "learning_figure", "cost_figure"),
    coreset_plot: ("coreset_figure",),
    goracs_plot: ("goracs_figure",),
    plots: ("curriculum_figure", "gate_figure"),
    rerank_plot: ("trade_off_figure",),
}

_asked: list[set[str] | None] = [set()]  # names of pictures that are drawn in any case; None: all


@cache
def _empty(format: str, width: int, height: int) -> bytes:
    """A picture of this size with nothing on it."""
    if format == "svg":
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>'.encode()
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, format=format)
    return content.getvalue()


@contextmanager
def drawn(*names: str) -> Iterator[None]:
    """A context in which every picture is drawn, or every one of these names (``"goracs.png"``)."""
    before, _asked[0] = _asked[0], set(names) or None
    try:
        yield
    finally:
        _asked[0] = before


def _is_drawn(name: str) -> bool:
    return _asked[0] is None or name in _asked[0]


@contextmanager
def made_once() -> Iterator[None]:
    """A context in which figures of one form are made once and no picture is drawn, but for :func:`drawn`."""
    draw, learning, sizes = Figure.savefig, comparison_plots.learning_figure, {}

    def save(figure: Figure, file: Any, *, dpi: float, format: str = "png", **options: Any) -> None:
        name = Path(file).name
        if _is_drawn(name):
            draw(figure, file, format=format, dpi=dpi, **options)
        else:
            _write_empty(file, figure.get_size_inches(), dpi, format)

    def once(make: Callable[..., Figure]) -> Callable[..., Any]:
        @wraps(make)
        def make_or_know(*args: Any, **options: Any) -> Any:
            read = [comparison_plots._history(own) for own in args[0].results] if make is learning else []
            form = make.__name__, form_of(args), form_of(options), form_of(read)
            if form in sizes and _asked[0] is not None:
                return Known(lambda: make(*args, **options), sizes[form])
            figure = make(*args, **options)
            sizes[form] = tuple(figure.get_size_inches())
            return figure

        return make_or_know

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        for module, names in FIGURES.items():
            for name in names:
                patch.setattr(module, name, once(getattr(module, name)))
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """A context without pictures, for processes that end after a command: every file is an empty one of an inch."""

    def save(figure: Figure, file: Any, *, dpi: float, format: str = "png", **options: Any) -> None:
        _write_empty(file, (1.0, 1.0), dpi, format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        for module, names in FIGURES.items():
            for name in names:
                patch.setattr(module, name, lambda *_, **__: Figure())
        yield


class Known:
    """A figure whose like has been made: it is made where somebody looks at it, or asks for its picture."""

    def __init__(self, make: Callable[[], Figure], size: tuple[float, float]) -> None:
        self._make, self._size = make, size

    @cached_property
    def _figure(self) -> Figure:
        return self._make()

    def savefig(self, file: Any, *, dpi: float, format: str = "png", **options: Any) -> None:
        if _is_drawn(Path(file).name):
            self._figure.savefig(file, dpi=dpi, format=format, **options)
        else:
            _write_empty(file, self._size, dpi, format)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._figure, name)


def _write_empty(file: Any, size: tuple[float, float], dpi: float, format: str) -> None:
    width, height = (round(side * dpi) for side in size)
    Path(file).write_bytes(_empty(format, width, height))


def form_of(value: Any) -> Hashable:
    """What a figure's making may fail at: types, none, one or several, and numbers missing, infinite or negative.

    Example:
        >>> form_of([1.0, 2.0]) == form_of([3.0, 0.5, 9.0]), form_of([1.0]) == form_of([float("nan")])
        (True, False)
    """
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int | float):
        return bool(np.isfinite(value)), bool(value < 0)
    if isinstance(value, np.ndarray):
        numbers = value.astype(float)
        n_values = len(np.unique(value)) if value.dtype.kind in "biu" else 0  # of classes, strata and codes
        return *map(_count, value.shape), _count(n_values), bool(np.isfinite(numbers).all()), bool((numbers < 0).any())
    if is_dataclass(value):
        return type(value), tuple(form_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return _count(len(value)), frozenset(map(form_of, value.values()))
    if isinstance(value, list | tuple):
        is_text = bool(value) and all(isinstance(own, str) for own in value)  # notes and names: of any number
        return str if is_text else (_count(len(value)), frozenset(map(form_of, value)))
    return type(value)


def _count(number: int) -> int:
    """None, one or several."""
    return min(number, 2)
