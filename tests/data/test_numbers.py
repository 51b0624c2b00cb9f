"""Columns of numbers as features: what stands where there is no number, and times that are a feature as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.settings.config import Config
from tests.data.test_gate import judged_by, learned_pairs

INTER = ["user_id", "item_id", "timestamp"]
CUTS: dict[str, dict[str, Any]] = {
    "each user": {"split": {"LS": "valid_and_test"}},
    "shares of all": {"split": {"RS": [0.7, 0.15, 0.15]}, "group_by": "none"},
    "one time": {"split": {"TS": [0.7, 0.15, 0.15]}},
}
TIME_AS_FEATURE: dict[str, dict[str, Any]] = {
    "numerical": {"numerical_features": ["timestamp"]},
    "normalised": {"normalize_all": True},
    "both": {"normalize_field": ["timestamp"], "numerical_features": ["timestamp"]},
    "equal steps": {
        "numerical_features": ["timestamp"],
        "discretization": {"timestamp": {"method": "ED", "bucket": 4}},
    },
    "logarithm": {"numerical_features": ["timestamp"], "discretization": {"timestamp": {"method": "LD"}}},
}


def write(folder: Path, start: int = 0, prices: dict[str, str] | None = None) -> Path:
    """80 interactions one unit apart, in no order; a price for the items that ``prices`` names."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = [f"u{rng.integers(8)}\ti{rng.integers(12)}\t{start + n}" for n in rng.permutation(80)]
    items = [f"i{n}\tTitle {n}\t{(prices or {}).get(f'i{n}', '')}" for n in range(12)]
    for suffix, header, rows in (
        ("inter", "user_id:token\titem_id:token\ttimestamp:float", lines),
        ("item", "item_id:token\ttitle:token\tprice:float", items),
    ):
        (folder / f"{folder.name}.{suffix}").write_text("\n".join([header, *rows]) + "\n")
    return folder


def load(folder: Path, model: str = "SASRec", **settings: Any) -> Rows:
    given = {"data_path": str(folder.parent), "MAX_ITEM_LIST_LENGTH": 6, **settings}
    return load_rows(Config(model, folder.name, config_dict=given), False)


STARTS = {"seconds": 1_700_000_000, "nanoseconds": 1_700_000_000_000_000_000}
WITH_START = [
    pytest.param(cut, start, id=f"{unit}-{cut}", marks=[] if unit == "nanoseconds" else pytest.mark.slow)
    for cut in CUTS
    for unit, start in STARTS.items()
]


@pytest.mark.parametrize(("cut", "start"), WITH_START)
def test_times_that_are_a_feature_cut_and_sort_as_the_exact_times_do(tmp_path, start, cut):
    folder = write(tmp_path / "shop", start)
    for model, windows in (("SASRec", None), ("SASRec", "full"), ("Pop", None)):
        settings = {"eval_args": {"order": "TO", **CUTS[cut]}, **({"windows": windows} if windows else {})}
        expected = load(folder, model, **settings)
        assert len(expected.test)
        for name, feature in TIME_AS_FEATURE.items():
            rows = load(folder, model, **settings, **feature)
            assert judged_by(rows) == judged_by(expected), (model, windows, name)
            if model == "Pop":
                assert learned_pairs(rows) == learned_pairs(expected), name
            assert rows.test.config["numerical_features"] == feature.get("numerical_features", [])


@pytest.mark.parametrize("cut", CUTS)
def test_times_that_are_a_feature_are_what_the_file_says(tmp_path, cut):
    folder = write(tmp_path / "shop", 100)
    settings = {"eval_args": {"order": "TO", **CUTS[cut]}}
    expected = load(folder, **settings).test.inter_feat
    rows = load(folder, **settings, **TIME_AS_FEATURE["numerical"]).test.inter_feat
    for name in ("timestamp", "timestamp_list"):
        assert rows[name].shape == (*expected[name].shape, 2)
        assert (rows[name][..., 0] == expected[name]).all()  # beside it a 1, and 0 where a history is padded
        assert (rows[name][..., 1] == (expected[name] > 0)).all()


@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_a_missing_number_is_the_mean_of_the_others_and_0_where_there_are_none(tmp_path, model):
    columns = {"inter": INTER, "item": ["item_id", "price"]}
    for name, prices, expected in (
        ("some", {"i1": "2", "i2": "4"}, {"i1": 2.0, "i2": 4.0, "i3": 3.0}),
        ("none", {}, {"i1": 0.0, "i2": 0.0, "i3": 0.0}),
    ):
        whole = load(write(tmp_path / name, prices=prices), model, load_col=columns).whole
        of_item = dict(zip(whole.field2id_token["item_id"], whole.item_feat["price"].tolist(), strict=True))
        assert {item: of_item[item] for item in expected} == expected
        said = " ".join(whole.reading.lines())
        assert ("filled with the mean: 10 price" in said) == bool(prices)
        warned = f"column 'price' of {name}.item holds no number in any row that is kept; it is 0 for all of them"
        assert (warned in said) == (not prices) and (warned in str(whole.reading.to_dict())) == (not prices)
        assert ("filled" in said) == bool(prices)
