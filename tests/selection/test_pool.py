"""A pool tells of its rows what a model tells of them, and has digests of its own."""

from __future__ import annotations

import numpy as np
import torch

from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.selection.pool import Pool


def test_ids_and_histories_are_those_of_the_rows_at_its_places(make):
    _, rows, model = make()
    places = np.array([5, 2, 11])
    pool, own = Pool(rows.train, places), rows.train.inter_feat[torch.from_numpy(places)]
    assert pool.histories == model.histories(own) and pool.ids.tolist() == own[SAMPLE_ID].tolist() and len(pool) == 3


def test_other_rows_have_other_digests(make):
    _, rows, _ = make()
    places = np.array([5, 2, 11])
    pools = [Pool(rows.train, part) for part in (places, places[:2], places[::-1].copy())]
    assert len({pool.digests["pool"] for pool in pools}) == 3 and len({pool.digests["rows"] for pool in pools}) == 1
    assert Pool(rows.valid, places).digests["rows"] != pools[0].digests["rows"]
