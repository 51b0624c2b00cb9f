"""The picture of codes: what its axes show."""

from __future__ import annotations

import numpy as np

from recbole_llm.report import code_figure


def test_the_tree_is_sorted_and_counts_beginnings_and_used_codes():
    codes = np.array([[2, 1], [0, 1], [0, 0], [2, 1], [1, 1]])
    tree, bars = code_figure(codes, n_codes=4, title="five items").axes
    image = np.asarray(tree.images[0].get_array())
    assert image.T.tolist() == sorted(codes.tolist())
    assert "3, 4" in tree.get_title()
    assert [bar.get_height() for bar in bars.patches] == [3, 2]
    assert bars.lines[0].get_ydata()[0] == 4
