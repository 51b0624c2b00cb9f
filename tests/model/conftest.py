"""What the recommenders' tests share: a world with gaps in its titles, and a place for stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.worlds import make_world


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which i3 has no title and i5, i8 and i9 share one."""
    folder = make_world(tmp_path_factory.mktemp("data") / "gaps", n_users=12, n_items=20)
    cells = [line.split("\t") for line in (folder / "gaps.item").read_text().splitlines()]
    new = {"i3": "", "i5": "The Twins", "i8": "The Twins", "i9": "The Twins"}
    lines = ["\t".join([row[0], new.get(row[0], row[1]), *row[2:]]) for row in cells]
    (folder / "gaps.item").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def place(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``checkpoint_dir`` with the LLM in it."""
    place = tmp_path_factory.mktemp("bigrec") / "saved"
    shutil.copytree(llama, place / "llama")
    return place
