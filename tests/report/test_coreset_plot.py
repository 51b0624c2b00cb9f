"""The picture of a coreset counts rows by stratum and shows every cost once."""

import numpy as np
import pytest
from PIL import Image

from recbole_llm.report import coreset_figure, plot_coreset
from recbole_llm.report.coreset_plot import ESTIMATE

SCORES = [0.0, 0.1, 0.2, 0.5, 0.9, 1.0, 7.0]
STRATA = [0, 0, 0, 1, 3, 3, -1]
SELECTED = [True, False, False, True, True, False, False]
SELECTION, TUNING = {"SASRec": 4.0, "influence": 2.0}, {"fine-tune": 3.0}


def bars(axes, label):
    (container,) = [found for found in axes.containers if found.get_label() == label]
    return [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in container]


def test_rows_and_selected_rows_stand_over_the_middle_of_their_stratum():
    left, _ = coreset_figure(SCORES, STRATA, SELECTED, SELECTION, TUNING).axes
    middles = [0.125, 0.375, 0.625, 0.875]
    assert bars(left, "rows (7)") == [(middles[0], 3), (middles[1], 1), (middles[3], 2)]
    assert bars(left, "selected (3)") == [(middles[0], 1), (middles[1], 1), (middles[3], 1)]
    assert bars(left, "cut (1)") == [(1.375, 1)]  # beyond the highest stratum, not at its score


def test_costs_stand_from_top_to_bottom_and_all_rows_are_an_estimate():
    _, right = coreset_figure(SCORES, STRATA, SELECTED, SELECTION, TUNING, n_all=30).axes
    names = [text.get_text() for text in right.get_yticklabels()]
    assert names == ["SASRec", "influence", "fine-tune", ESTIMATE]
    assert [bar.get_width() for bar in right.containers[0]] == [4.0, 2.0, 3.0, pytest.approx(3.0 / 3 * 30)]
    assert [bar.get_y() > 0 for bar in right.containers[0]][0]
    _, without = coreset_figure(SCORES, STRATA, SELECTED, SELECTION, TUNING).axes
    assert len(without.containers[0]) == 3


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [0.5]])
def test_equal_scores_and_a_single_row_are_drawn(scores, tmp_path):
    n_rows = len(scores)
    file = plot_coreset(tmp_path / "c.png", scores, np.zeros(n_rows, dtype=int), [True] * n_rows, {}, {}, title="a_$b")
    with Image.open(file) as picture:
        assert picture.size == (1320, 540)
