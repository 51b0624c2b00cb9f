"""The index's benchmark on a small catalogue: its ways agree, and its table says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import scale_faiss

pytest.importorskip("faiss")


def test_torchs_way_and_the_index_rank_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(scale_faiss, "BLOCK", 100)
    scale_faiss.make_data(tmp_path, 1050, 32, 20, seed=0)
    found = {}
    for way in ("torch", "Flat", "IVF4,Flat;nprobe=4"):
        seconds = scale_faiss.measured(way, tmp_path, 5)
        assert set(seconds) == {"build", "top_k", "top_k_and_ranks"} and min(seconds.values()) >= 0
        with np.load(scale_faiss.ranking_file(tmp_path, way)) as saved:
            found[way] = {name: saved[name] for name in saved}
    for way in ("torch", "IVF4,Flat;nprobe=4"):
        np.testing.assert_array_equal(found[way]["top_items"], found["Flat"]["top_items"])
        np.testing.assert_array_equal(found[way]["ranks"], found["Flat"]["ranks"])
    assert scale_faiss.measured("data", tmp_path, 5) == {}
    items, asked = np.load(tmp_path / "items.npy"), np.load(tmp_path / "queries.npz")
    table = torch.cdist(torch.from_numpy(asked["queries"]).double(), torch.from_numpy(items).double())
    own = table[torch.arange(20), torch.from_numpy(asked["targets"])][:, None]
    assert found["Flat"]["ranks"].tolist() == (table[:, 1:] < own).sum(dim=1).tolist()


def test_the_table_has_a_line_for_every_way(tmp_path):
    way = {"build": 1.0, "top_k": 2.0, "top_k_and_ranks": 3.0, "peak_mib": 4000.0, "load average before": 0.5}
    setting = {"items": 1000, "width": 8, "queries": 7, "k": 10, "seed": 0, "threads": 2}
    ways = {"torch": way, "Flat": {**way, "recall": 1.0, "equal_ranks": 0.5}}
    file = tmp_path / "scale.json"
    file.write_text(json.dumps({"x": {"setting": setting, "ways": ways}}))
    lines = list(scale_faiss.render(file))[2:]
    assert lines == [
        "| 1,000 x 8 | 7 | `torch` | 2 | 0.5 | 1.0 | 2.0 | 3.0 | 4,000 |  |  |",
        "| 1,000 x 8 | 7 | `Flat` | 2 | 0.5 | 1.0 | 2.0 | 3.0 | 4,000 | 1.0000 | 0.5000 |",
    ]
