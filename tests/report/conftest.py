"""Reports are tested as they are drawn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pictures import drawn


@pytest.fixture(autouse=True)
def real_pictures() -> Iterator[None]:
    with drawn():
        yield
