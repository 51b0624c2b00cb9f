"""The Python of the README works as it is written: run, look at metrics, recommend for two titles, load again."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recbole

import recbole_llm
from tests.runs import TINY, working_in

README = Path(__file__).resolve().parent.parent / "README.md"
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def some_of_ml_100k(folder: Path) -> Path:
    """The data set with the interactions of the users whose number ends in 6; the example asks for number 196."""
    source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    (folder / "ml-100k").mkdir(parents=True)
    shutil.copy(source / "ml-100k.item", folder / "ml-100k")
    head, *lines = (source / "ml-100k.inter").read_text().splitlines(keepends=True)
    own = [line for line in lines if line.partition("\t")[0].endswith("6")]
    (folder / "ml-100k" / "ml-100k.inter").write_text("".join([head, *own]))
    return folder


def test_the_example_with_a_smaller_llm_and_fewer_rows(tmp_path, monkeypatch, capsys):
    words = dict(word.removeprefix("--").split("=") for word in TINY)
    fewer = {"epochs": 1, "valid_sample_size": 8, "test_sample_size": 8, "num_beams": 10, "show_progress": False}
    small = functools.partial(recbole_llm.run, **{**words, **fewer}, data_path=str(some_of_ml_100k(tmp_path / "data")))
    monkeypatch.setattr(recbole_llm, "run", lambda *names, **given: small(*names, **{**given, "train_sample_size": 8}))
    names: dict[str, Any] = {}
    (tmp_path / "properties").symlink_to(README.parent / "properties")
    with working_in(tmp_path):
        exec(EXAMPLE, names)  # noqa: S102
        found, again = (run.recommend(users=["196"], k=3) for run in (names["run"], names["again"]))
    printed = capsys.readouterr().out
    assert printed.startswith(str(names["run"].metrics["ndcg@10"])) and len(printed.splitlines()) == 1 + 1 + 5
    assert found.equals(again) and names["again"].metrics == names["run"].metrics


@pytest.mark.slow
def test_the_example_as_it_is_written(tmp_path):
    (tmp_path / "properties").symlink_to(README.parent / "properties")
    subprocess.run([sys.executable, "-c", EXAMPLE], check=True, cwd=tmp_path)
