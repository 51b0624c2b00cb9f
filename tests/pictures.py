"""Pictures in tests: most runs draw some, and drawing one takes as long as fine-tuning the smallest LLM.

The first picture of each name that a process draws is drawn. Of the later ones the figure is made, and an empty picture
of its size is written; :func:`drawn` is for tests that look inside.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

_seen: set[str] = set()
_all = [False]


@cache
def _empty(format: str, width: int, height: int) -> bytes:
    """A picture of this size with nothing on it."""
    if format == "svg":
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>'.encode()
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, format=format)
    return content.getvalue()


@contextmanager
def drawn() -> Iterator[None]:
    """A context in which every picture is drawn."""
    before, _all[0] = _all[0], True
    try:
        yield
    finally:
        _all[0] = before


@contextmanager
def drawn_once() -> Iterator[None]:
    """A context in which only the first picture of each name is drawn, but for :func:`drawn`."""
    draw = Figure.savefig

    def save(figure: Figure, file: Any, *, dpi: float, format: str = "png", **options: Any) -> None:
        name = Path(file).name
        if _all[0] or name not in _seen:
            draw(figure, file, format=format, dpi=dpi, **options)
        else:
            width, height = (round(side * dpi) for side in figure.get_size_inches())
            Path(file).write_bytes(_empty(format, width, height))
        _seen.add(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
