"""Two seeds evaluate the same users, on the same histories and targets, among the same items; ``sample_seed`` draws."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import SAMPLE_ID, Rows, load_rows, row_histories, row_pairs
from recbole_llm.evaluation import check_together, protocol_of
from recbole_llm.evaluation.candidate_choice import CandidateChoice
from recbole_llm.settings.config import Config
from tests.refusals import refused

SAMPLES = {"valid_sample_size": 6, "test_sample_size": 6}
CLICKS = {"threshold": {"rating": 3}}
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("SASRec", {}),
    "uniform": ("SASRec", {"eval_args": {"mode": "uni5"}}),
    "by popularity": ("SASRec", {"eval_args": {"mode": "pop5"}}),
    "a general model": ("BPR", {"eval_args": {"mode": "uni5"}}),
    "without own items": ("BPR", {"eval_args": {"mode": "uni5"}, "repeatable": False}),
    "candidates": ("SASRec", {"candidates": 5}),
    "clicks": ("FM", CLICKS),
}


def loaded(world: Path, saved: Path, model: str, few_shot: bool = False, **settings: Any) -> tuple[Config, Rows]:
    where = {"data_path": str(world.parent), "checkpoint_dir": str(saved)}
    config = Config(model, world.name, config_dict={**where, **settings})
    return config, load_rows(config, few_shot)


def evaluated(world: Path, saved: Path, model: str, **settings: Any) -> dict[str, list[Any]]:
    """User, history and target of every row, and the items that it is evaluated among, by split."""
    config, rows = loaded(world, saved, model, **settings)
    protocol = protocol_of(config)
    protocol.prepare(rows)
    found = {}
    for phase in ("valid", "test"):
        part = getattr(rows, phase)
        items, lengths = row_histories(part)
        histories = [row[:length].tolist() for row, length in zip(items, lengths, strict=True)]
        among = sampled(config, rows, phase)
        if isinstance(protocol, CandidateChoice):
            among = protocol._candidates.of(part.inter_feat).tolist()
        labels = part.inter_feat[part.label_field].tolist() if protocol.has_labels else []
        found[phase] = [row_pairs(part).tolist(), histories, among, labels]
    return found


def sampled(config: Config, rows: Rows, phase: str) -> list[list[int]]:
    """The items that RecBole's loader ranks a row's target among; none where it ranks all."""
    if not config["eval_args"]["mode"][phase].startswith(("uni", "pop")):
        return []
    lists: dict[int, list[int]] = {}
    for batch, *_ in eval_loader(config, rows, phase):
        for row, item in zip(batch[SAMPLE_ID].tolist(), batch["item_id"].tolist(), strict=True):
            lists.setdefault(row, []).append(item)
    assert {len(own) for own in lists.values()} == {6}
    return [lists[row] for row in getattr(rows, phase).inter_feat[SAMPLE_ID].tolist()]


def by_user(config: Config, rows: Rows) -> dict[int, list[int]]:
    """What each test row is ranked among; RecBole's loader puts the rows in the order of users."""
    lists = sampled(config, rows, "test")
    return dict(zip(row_pairs(rows.test)[:, 0].tolist(), lists, strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_depend_on_sample_seed_and_not_on_seed(world, tmp_path, protocol):
    model, settings = PROTOCOLS[protocol]
    first, other = (evaluated(world, tmp_path, model, seed=seed, **settings, **SAMPLES) for seed in (1, 2))
    assert first == other
    assert evaluated(world, tmp_path, model, seed=1, sample_seed=1, **settings, **SAMPLES) != first


def test_what_a_row_is_evaluated_among_depends_on_the_row_alone(world, tmp_path):
    """Neither the rows beside it nor batches nor what was drawn before decide."""
    mode = {"eval_args": {"mode": "uni5"}}
    config, rows = loaded(world, tmp_path, "SASRec", **mode)
    whole = by_user(config, rows)
    assert len({tuple(own[1:]) for own in whole.values()}) == len(whole) == 12
    np.random.seed(5)
    expected = np.random.RandomState(5).random()
    for model, more in (("Pop", {}), ("SASRec", {"eval_batch_size": 1, "test_sample_size": 4})):
        config, rows = loaded(world, tmp_path, model, **mode, **more)
        again = by_user(config, rows)
        assert again == {user: whole[user] for user in again} and len(again) in (4, 12)
    assert np.random.random() == expected  # training goes on as if nothing had been drawn


def test_samples_of_rows_are_uniform_over_the_other_items(world, tmp_path):
    config, rows = loaded(world, tmp_path, "SASRec", eval_args={"mode": "uni5"})
    drawn: list[int] = []
    for seed in range(40):
        config["sample_seed"] = seed
        for own in sampled(config, rows, "test"):
            assert own[0] not in own[1:]
            drawn += own[1:]
    counts = np.bincount(drawn, minlength=rows.whole.item_num)[1:]
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_popular_negatives_of_training_know_nothing_of_validation_and_test(world, tmp_path, model):
    """A rare item that is every target after the split is as rare among the negatives as in the training rows."""
    copied = shutil.copytree(world, tmp_path / "world")
    file = copied / "world.inter"
    header, *lines = file.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    item, time = (header.split("\t").index(name) for name in ("item_id:token", "timestamp:float"))
    last: dict[str, list[list[str]]] = {}
    for row in sorted(rows, key=lambda row: float(row[time])):
        last.setdefault(row[0], []).append(row)
    for own in last.values():
        own[-1][item] = own[-2][item] = "late"
    file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    negatives = {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}
    settings = {"data_path": str(tmp_path), "train_neg_sample_args": negatives}
    settings |= {"loss_type": "BPR"} if model == "SASRec" else {}
    config = Config(model, "world", settings=settings)
    sampler = train_loader(config, load_rows(config, False))._sampler
    late = load_rows(config, False).whole.token2id("item_id", "late")
    assert sampler.prob and late not in sampler.prob


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_popular_negatives_of_which_there_are_none_are_refused(world, model):
    """RecBole would draw again and again."""
    settings = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}}
    settings |= {"loss_type": "BPR"} if model == "SASRec" else {}
    config = Config(model, "world", settings={**settings, "data_path": str(world.parent)})
    rows = load_rows(config, False)
    feat, field = rows.train.inter_feat, rows.train.iid_field
    assert train_loader(config, rows) is not None
    if model == "SASRec":
        feat[field][:] = 1
    else:
        feat[field][:] = torch.arange(len(feat)) % 2 + 1
        feat[rows.train.uid_field][:2] = 1
    with refused("train_neg_sample_args", "data", "popularity draws from the . items of .* which leaves a row none"):
        train_loader(config, rows)


def test_samples_by_popularity_follow_the_interactions_before_the_split(world, tmp_path):
    config, rows = loaded(world, tmp_path, "SASRec", eval_args={"mode": "pop5"})
    drawn: list[int] = []
    for seed in range(60):
        config["sample_seed"] = seed
        for own in sampled(config, rows, "test"):
            drawn += own[1:]
    counts = rows.whole.item_counts
    found = np.bincount(drawn, minlength=rows.whole.item_num)
    assert not found[counts == 0].any() and found[counts > 0].all()
    assert np.corrcoef(found, counts)[0, 1] > 0.95
    np.testing.assert_allclose(found / found.sum(), counts / counts.sum(), atol=0.02)


def test_training_rows_and_their_candidates_are_drawn_by_seed(world, tmp_path):
    from recbole_llm.data.candidates import row_candidates
    from recbole_llm.data.catalog import ItemCatalog
    from recbole_llm.stages import StageStore

    found = []
    for seed, sample_seed in ((1, 2020), (2, 2020), (1, 7)):
        settings = {"candidates": 5, "train_sample_size": 8, "seed": seed, "sample_seed": sample_seed}
        config, rows = loaded(world, tmp_path, "SASRec", few_shot=True, **settings)
        catalog = ItemCatalog.from_dataset(rows.whole, "title")
        drawn = row_candidates(config, rows, ("train",), catalog, StageStore(tmp_path / "stages"))
        found.append((row_pairs(rows.train).tolist(), drawn.items.tolist()))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("settings", [{"candidates": 5}, {"eval_args": {"mode": "pop5"}}])
def test_models_of_one_table_share_the_sample_seed(world, tmp_path, settings):
    configs = [loaded(world, tmp_path, model, sample_seed=n, **settings)[0] for n, model in enumerate(("Pop", "BPR"))]
    with refused("sample_seed", "conflict", "sample_seed: Pop has 0 and BPR 1; .* the same candidates"):
        check_together([protocol_of(config) for config in configs])
    check_together([protocol_of(configs[0]), protocol_of(loaded(world, tmp_path, "BPR", sample_seed=0, **settings)[0])])


def test_validation_inside_recboles_trainer_has_the_same_samples(world, tmp_path, monkeypatch):
    """RecBole validates while it trains, and training draws too: each validation ranks the same lists."""
    from recbole_llm.classic.training import fit_classic
    from recbole_llm.evaluation.collector import RowCollector

    seen: list[torch.Tensor] = []
    collect = RowCollector.eval_batch_collect

    def watch(self: RowCollector, scores: torch.Tensor, *rest: Any) -> None:
        seen.append(torch.isfinite(scores))
        collect(self, scores, *rest)

    monkeypatch.setattr(RowCollector, "eval_batch_collect", watch)
    for seed in (1, 2):
        settings = {"eval_args": {"mode": "uni5"}, "epochs": 2, "seed": seed, "show_progress": False}
        fit_classic(*loaded(world, tmp_path, "BPR", **settings), tmp_path / f"model{seed}.pth")
    assert len(seen) == 4 and all(torch.equal(mask, seen[0]) for mask in seen)
