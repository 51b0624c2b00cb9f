"""The tests' own pictures: a figure is made where no earlier one showed data of the same form."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from recbole_llm.report import RunResult, coreset_plot
from tests.pictures import drawn, form_of, made_once

FORMS = [[0.1, 0.9], [0.1, -0.9], [0.1, float("nan")], [0.1, None], [0.1], []]


def test_figures_of_one_form_are_made_once_and_have_its_size(tmp_path, monkeypatch):
    made: list[list[float]] = []

    def figure(scores: list[float]) -> Figure:
        made.append(scores)
        return Figure(figsize=(2, 1))

    def width(scores: list[float]) -> int:
        coreset_plot.coreset_figure(scores).savefig(tmp_path / "of this test.png", dpi=50)
        with Image.open(tmp_path / "of this test.png") as image:
            return image.width

    monkeypatch.setattr(coreset_plot, "coreset_figure", figure)
    with made_once():
        assert [width(scores) for scores in [*FORMS, [0.2, 0.3], *FORMS]] == [100] * (2 * len(FORMS) + 1)
        assert made == FORMS
        with drawn():
            width([0.4, 0.5])
        assert made[-1] == [0.4, 0.5]


@pytest.mark.parametrize(
    ("value", "alike", "other"),
    [
        (np.array([1.0, 2.0]), np.array([0.5, 4.0]), np.array([1.0, np.inf])),
        (np.array([0, 1, 1]), np.array([2, 2, 3, 4]), np.array([1, 1, 1])),
        ({"ndcg@10": 0.1}, {"hit@10": 0.7}, {"ndcg@10": 0.1, "hit@10": 0.7}),
        (RunResult("Pop", "a", test={"hit@5": 0.1}), RunResult("BPR", "b", test={"hit@5": 0.2}), RunResult("Pop", "a")),
        (True, True, False),
    ],
)
def test_a_form_is_what_a_figure_depends_on(value, alike, other):
    assert form_of(value) == form_of(alike) != form_of(other)
