"""The plot shows the records: every value at its epoch, a gap where there is none, the best epoch marked."""

import math

import numpy as np
import pytest
from PIL import Image

from recbole_llm.report import curriculum_figure, gate_figure, plot_curriculum, plot_gates, plots
from recbole_llm.report.plots import principal_plane
from tests.processes import fresh_python

HISTORY = [
    {"epoch": 1, "train_loss": 1.2, "weight": 1.0, "real_loss": None, "distilled_loss": 1.2, "distance": 3.0,
     "valid": {"hit@10": 0.3, "ndcg@10": 0.10}},
    {"epoch": 2, "train_loss": 1.9, "weight": 0.08, "real_loss": 2.0, "distilled_loss": 1.0, "distance": 2.5,
     "valid": {"hit@10": 0.1, "ndcg@10": 0.15}},
    {"epoch": 3, "train_loss": 1.8, "weight": 0.02, "real_loss": 1.8, "distilled_loss": 0.9, "distance": 2.6},
    {"epoch": 4, "train_loss": 1.7, "weight": 0.0, "real_loss": 1.7, "distilled_loss": None, "distance": None,
     "valid": {"hit@10": 0.2, "ndcg@10": 0.15}},
]  # fmt: skip


def lines(figure):
    """Label of every line -> its points; None where it has a gap."""
    return {
        line.get_label(): [(x, None if math.isnan(y) else y) for x, y in zip(*line.get_data(), strict=True)]
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() != "best epoch"
    }


def best(figure):
    """Epoch marked in every one of the axes."""
    marks = [[line.get_xdata()[0] for line in axes.lines if line.get_label() == "best epoch"] for axes in figure.axes]
    assert len({tuple(mark) for mark in marks}) == 1
    return marks[0]


def test_every_value_stands_at_its_epoch_and_none_is_a_gap():
    figure = curriculum_figure(HISTORY, metric="NDCG@10", initial_distance=4.2)
    assert len(figure.axes) == 4
    assert lines(figure) == {
        "λ": [(1, 1.0), (2, 0.08), (3, 0.02), (4, 0.0)],
        "distance": [(0, 4.2), (1, 3.0), (2, 2.5), (3, 2.6), (4, None)],
        "distilled answers": [(1, 1.2), (2, 1.0), (3, 0.9), (4, None)],
        "true titles": [(1, None), (2, 2.0), (3, 1.8), (4, 1.7)],
        "ndcg@10": [(1, 0.10), (2, 0.15), (3, None), (4, 0.15)],
    }


def test_all_values_lie_inside_their_axes_and_show_without_a_line_to_them():
    for history in (HISTORY, HISTORY[:1], [*HISTORY, {"epoch": 5}, {**HISTORY[1], "epoch": 6}]):
        figure = curriculum_figure(history, initial_distance=4.2)
        for axes in figure.axes:
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            for line in axes.lines[:-1]:  # the last marks the best epoch
                assert line.get_marker() in ("o", "s")
                points = [(x, y) for x, y in zip(*line.get_data(), strict=True) if not math.isnan(y)]
                assert all(left < x < right and bottom < y < top for x, y in points)


def test_the_best_epoch_is_the_first_with_the_highest_metric_unless_given():
    assert best(curriculum_figure(HISTORY, metric="ndcg@10")) == [2]
    assert best(curriculum_figure(HISTORY)) == [1]  # the first metric recorded: hit@10
    assert best(curriculum_figure(HISTORY, metric="ndcg@10", best_epoch=3)) == [3]
    assert best(curriculum_figure(HISTORY[2:3])) == best(curriculum_figure([])) == []


def test_what_was_never_measured_is_said():
    fixed = [{"epoch": 1, "weight": 0.5, "real_loss": 2.0, "distilled_loss": 1.0}]
    words = [[text.get_text() for text in axes.texts] for axes in curriculum_figure(fixed).axes]
    assert words == [[], ["not measured"], [], ["not measured"]]
    assert not any(axes.texts for axes in curriculum_figure(HISTORY).axes)


@pytest.mark.parametrize("history", [HISTORY, []])
def test_the_file_is_a_png_of_the_stated_size(history, tmp_path):
    path = plot_curriculum(history, tmp_path / "curriculum.png", "SOFT on $5 & 50 % of a_b^c")
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", tuple(round(side * plots.DPI) for side in plots.SIZE))
        assert len(image.convert("RGB").getcolors(1_000_000)) > 2


def test_equal_records_give_equal_bytes(tmp_path):
    first, second = (plot_curriculum(HISTORY, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never(tmp_path):
    program = (
        "import sys; from recbole_llm.report import plot_curriculum\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_curriculum([{'epoch': 1, 'weight': 1.0}], sys.argv[1])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    fresh_python(tmp_path / "curriculum.png", code=program)


# ---------------------------------------------------------------------------------------------------------------- gates


def random_gates(rows=40, experts=4, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(experts, 0.5), size=rows)


def test_the_plane_keeps_distances_of_points_that_lie_in_one():
    """Three gates of sum 1 lie in a plane: nothing is lost, whatever the directions are."""
    gates = random_gates(experts=3)
    points, shares = principal_plane(gates)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (gates, points)]
    np.testing.assert_allclose(*distances, atol=1e-12)
    assert shares.sum() == pytest.approx(1) and shares[0] >= shares[1] > 0


def test_the_components_are_the_eigenvectors_of_the_covariance():
    gates = random_gates()
    points, shares = principal_plane(gates)
    values = np.linalg.eigvalsh(np.cov(gates.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), values[:2])
    np.testing.assert_allclose(shares, values[:2] / values.sum())
    assert points[:, 0] @ points[:, 1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(principal_plane(gates[::-1])[0], points[::-1], atol=1e-12)


@pytest.mark.parametrize("gates", [[[0.5, 0.5]], [[1.0], [1.0]], [[0.3, 0.7], [0.6, 0.4]], [[0.25] * 4] * 5])
def test_few_rows_and_equal_gates_are_drawn_as_well(gates, tmp_path):
    points, shares = principal_plane(np.asarray(gates))
    assert points.shape == (len(gates), 2) and np.isfinite(points).all() and np.isfinite(shares).all()
    assert plot_gates(gates, tmp_path / "gates.png").stat().st_size


def test_every_row_stands_at_its_point_in_the_colour_of_its_strongest_expert():
    gates = random_gates()
    plane, bars = gate_figure(gates, "a_b $5").axes
    points, strongest = principal_plane(gates)[0], gates.argmax(axis=1)
    for expert, drawn in zip(np.unique(strongest), plane.collections, strict=True):
        np.testing.assert_allclose(drawn.get_offsets(), points[strongest == expert])
        assert drawn.get_label() == f"expert {expert + 1}: {(strongest == expert).sum()} rows"
        np.testing.assert_allclose(drawn.get_facecolor()[0][:3], bars.patches[expert].get_facecolor()[:3])
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(gates.mean(axis=0))


def test_equal_gates_give_equal_bytes(tmp_path):
    first, second = (plot_gates(random_gates(), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second
    with Image.open(tmp_path / "a") as image:
        assert (image.format, image.size) == ("PNG", tuple(round(side * plots.DPI) for side in plots.SIZE))
