"""The picture of GORACS shows every objective and every row; the map keeps what a plane can keep."""

import numpy as np
import pytest
from PIL import Image

from recbole_llm.report import goracs_figure, map_points, plot_goracs

TRACES = {"greedy": [0.5, 0.4, 0.35], "capacity": [0.45, 0.3]}
POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
SELECTED = [False, True, False, True]
VALID = np.array([[0.5, 0.5], [1.5, 0.5]])


def test_every_start_is_a_line_over_its_exchanges():
    left, _ = goracs_figure(TRACES, POINTS, SELECTED, VALID).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in left.get_lines()}
    assert drawn == {
        "greedy: 0.5000 to 0.3500": ([0, 1, 2], TRACES["greedy"]),
        "capacity: 0.4500 to 0.3000": ([0, 1], TRACES["capacity"]),
    }


def test_the_map_shows_all_rows_and_the_selected_ones_on_top():
    _, right = goracs_figure(TRACES, POINTS, SELECTED, VALID).axes
    drawn = {found.get_label(): np.asarray(found.get_offsets()) for found in right.collections}
    assert list(drawn) == ["training rows (4)", "validation rows (2)", "selected (2)"]  # later ones cover earlier ones
    np.testing.assert_array_equal(drawn["training rows (4)"], POINTS)
    np.testing.assert_array_equal(drawn["validation rows (2)"], VALID)
    np.testing.assert_array_equal(drawn["selected (2)"], POINTS[[1, 3]])


@pytest.mark.parametrize("traces", [{"greedy": [0.25]}, {}])
def test_what_is_missing_is_left_out(traces, tmp_path):
    file = plot_goracs(tmp_path / "g.png", traces, POINTS, np.zeros(4, dtype=bool), VALID[:0], title="a_$b")
    with Image.open(file) as picture:
        assert picture.size == (1320, 540)


def test_the_map_has_the_largest_variances_and_the_distances_of_a_plane():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(30, 2)) * [3.0, 1.0]
    turn = np.linalg.qr(generator.normal(size=(5, 5)))[0][:2]
    train, valid = map_points(flat[:20] @ turn + 7.0, flat[20:] @ turn + 7.0)
    both = np.concatenate([train, valid])
    assert train.shape == (20, 2) and valid.shape == (10, 2)
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-12)
    expected = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    np.testing.assert_allclose(both.var(axis=0, ddof=1), expected)
    np.testing.assert_allclose(both[:, 0] @ both[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(
        np.linalg.norm(both[:, None] - both, axis=2), np.linalg.norm(flat[:, None] - flat, axis=2), atol=1e-9
    )


def test_the_map_does_not_depend_on_the_order_of_the_rows_nor_on_their_number_type():
    generator = np.random.default_rng(1)
    train, valid = generator.normal(size=(40, 6)) * np.arange(1, 7), generator.normal(size=(15, 6))
    order = generator.permutation(40)
    points, _ = map_points(train, valid)
    np.testing.assert_allclose(map_points(train[order], valid)[0], points[order], atol=1e-9)
    np.testing.assert_allclose(map_points(train.astype(np.float32), valid.astype(np.float32))[0], points, atol=1e-3)


def test_vectors_of_one_number_and_equal_vectors_have_a_map():
    points, valid = map_points(np.array([[1.0], [3.0]]), np.array([[2.0]]))
    np.testing.assert_allclose(points, [[-1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(valid, [[0.0, 0.0]])
    np.testing.assert_array_equal(map_points(np.ones((3, 4)), np.ones((2, 4)))[0], np.zeros((3, 2)))
