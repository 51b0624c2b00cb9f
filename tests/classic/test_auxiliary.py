"""What an LLM model borrows of a classic one: item vectors and sequence states, against RecBole's own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.classic.auxiliary import AuxiliaryRecommender, AuxiliaryStage, auxiliary_rows
from recbole_llm.data.rows import Rows, load_rows, take_sample
from recbole_llm.settings.config import Config
from recbole_llm.stages import StageStore
from tests.refusals import refused
from tests.runs import histories_in, words_for, working_in
from tests.worlds import make_world

QUICK = "--recommender_config={epochs: 1, train_batch_size: 64}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many items for so few users that some occur in no training row."""
    return make_world(tmp_path_factory.mktemp("data") / "sparse", n_users=10, n_items=40)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("auxiliary")


@pytest.fixture(scope="module")
def make(world: Path, root: Path) -> Callable[..., AuxiliaryRecommender]:
    """``make("SASRec", "--seed=1", needs_states=True)``: for a run of BIGRec on the world."""

    def make(name: str, *words: str, **needs: bool) -> AuxiliaryRecommender:
        usual = words_for("BIGRec", world, root / "saved", QUICK, *words)
        config = Config("BIGRec", world.name, argv=[word for word in usual if not word.startswith("--model=")])
        with working_in(root):
            return AuxiliaryRecommender(config, name, StageStore(root / "saved" / "stages"), **needs)

    return make


@pytest.fixture(scope="module", params=["SASRec", "GRU4Rec"])
def recommender(request: pytest.FixtureRequest, make: Any) -> AuxiliaryRecommender:
    return make(request.param, needs_states=True)


@pytest.fixture(scope="module")
def sasrec(make: Any) -> AuxiliaryRecommender:
    return make("SASRec", needs_states=True)


def rows_of(recommender: AuxiliaryRecommender) -> Rows:
    return load_rows(recommender.config, few_shot=False)


def histories_of(part: Any) -> list[list[int]]:
    rows = part.inter_feat
    lengths = rows["item_length"].tolist()
    return [items[:n] for items, n in zip(rows["item_id_list"].tolist(), lengths, strict=True)]


def forward(recommender: AuxiliaryRecommender, histories: list[list[int]]) -> np.ndarray:
    """RecBole's own forward pass, right-padded to the model's length."""
    items = torch.tensor([own + [0] * (10 - len(own)) for own in histories])
    with torch.no_grad():
        return recommender.model(items, torch.tensor([len(own) for own in histories])).numpy()


def test_its_stage_depends_on_every_column_that_training_may_read(sasrec):
    rows = rows_of(sasrec)
    usual, tables = AuxiliaryStage(sasrec.config, "SASRec", rows).facts(), rows.train.feat_name_list
    columns = [(getattr(rows.train, name), column) for name in tables for column in getattr(rows.train, name).columns]
    assert {"user_id", "item_id", "item_id_list", "timestamp"} <= {column for _, column in columns}
    for table, column in columns:
        before = table.interaction[column]
        table.interaction[column] = before.clone()
        table.interaction[column].flatten()[-1] += 1
        assert AuxiliaryStage(sasrec.config, "SASRec", rows).facts() != usual, column
        table.interaction[column] = before
    assert AuxiliaryStage(sasrec.config, "SASRec", rows).facts() == usual


def test_states_are_those_of_recboles_forward_on_its_own_rows(recommender):
    part = rows_of(recommender).train
    rows = part.inter_feat
    with torch.no_grad():
        expected = recommender.model(rows["item_id_list"], rows["item_length"]).numpy()
    found = recommender.sequence_states(histories_of(part))
    assert found.dtype == np.float32 and len(np.unique(found, axis=0)) > 5
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_state_times_an_items_vector_is_its_score(recommender):
    part = rows_of(recommender).train
    scores = recommender.scores(part.inter_feat)
    products = recommender.sequence_states(histories_of(part)) @ recommender.item_vectors().T
    known = np.flatnonzero(recommender.known)
    np.testing.assert_allclose(products[:, known], scores[:, known], atol=1e-5)


def test_an_items_state_is_that_of_the_history_up_to_it(recommender):
    known = np.flatnonzero(recommender.known).tolist()
    unknown = np.flatnonzero(~recommender.known).tolist()
    mixed = [known[0], unknown[1], known[4], known[2]]
    found = recommender.item_states([mixed, [], known[3:4], unknown])
    assert [own.shape for own in found] == [(n, recommender.state_width) for n in (3, 0, 1, 0)]
    expected = recommender.sequence_states([known[:1], [known[0], known[4]], [known[0], known[4], known[2]]])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_allclose(found[2], forward(recommender, [known[3:4]]), atol=1e-5)
    np.testing.assert_allclose(recommender.sequence_states([mixed]), expected[-1:], atol=1e-6)  # as before the others


def test_bert4recs_states_of_items_know_the_whole_history(make):
    model = make("BERT4Rec")
    known = np.flatnonzero(model.known).tolist()
    one, other = model.item_states([known[:3], [*known[:2], known[3]]])
    with torch.no_grad():
        expected = model.model(torch.tensor([known[:3] + [0] * 7]))[0, :3].numpy()
    np.testing.assert_allclose(one, expected, atol=1e-5)
    assert np.abs(one[0] - other[0]).max() > 1e-6


def test_the_newest_items_count(recommender):
    known = np.flatnonzero(recommender.known).tolist()
    long = known[:7] + known[:8][::-1]
    found = recommender.sequence_states([long, long[-10:], long[:10]])
    assert np.array_equal(found[0], found[1]) and np.abs(found[0] - found[2]).max() > 1e-6
    np.testing.assert_allclose(found[:1], forward(recommender, [long[-10:]]), atol=1e-5)


def test_items_outside_all_training_rows_are_unknown(recommender, world):
    whole = rows_of(recommender).whole
    trained = {item for items in histories_in(world).values() for item in items[:-2]}
    tokens = whole.id2token("item_id", np.arange(1, whole.item_num))
    assert recommender.known.tolist() == [False, *(token in trained for token in tokens)]
    unknown = np.flatnonzero(~recommender.known)
    assert 1 < len(unknown) < whole.item_num / 2  # the padding item and some others
    vectors = recommender.item_vectors()
    assert not vectors[unknown].any() and vectors[recommender.known].any(axis=1).all()
    embedding = recommender.model.item_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(vectors[recommender.known], embedding[recommender.known])


def test_unknown_items_are_left_out_and_nothing_known_is_zero(recommender):
    known, unknown = (np.flatnonzero(mask).tolist() for mask in (recommender.known, ~recommender.known))
    mixed = [unknown[1], known[0], unknown[1], known[1], 0]
    found = recommender.sequence_states([mixed, known[:2], [], unknown[1:], [0]])
    assert np.array_equal(found[0], found[1]) and found[0].any() and not found[2:].any()
    assert recommender.sequence_states([]).shape == (0, recommender.state_width)


def test_a_state_has_the_same_bits_in_any_company(recommender):
    """So a resumed run, whose rows first meet in other batches, goes on with the same gates."""
    histories = histories_of(rows_of(recommender).train)
    together = recommender.sequence_states(histories)
    recommender._states.clear()
    alone = np.concatenate([recommender.sequence_states([history]) for history in reversed(histories)])[::-1]
    assert np.array_equal(together, alone)


def test_each_history_is_computed_once_and_without_dropout(sasrec, monkeypatch):
    computed = []
    compute = sasrec._forward
    monkeypatch.setattr(sasrec, "_forward", lambda histories: computed.extend(histories) or compute(histories))
    assert sasrec.state_width == 64
    computed.clear()
    sasrec._states.clear()
    known = np.flatnonzero(sasrec.known).tolist()
    first = sasrec.sequence_states([known[:2], known[:3], known[:2]])
    assert np.array_equal(first, sasrec.sequence_states([known[:2], known[:3], known[:2]]))
    assert sorted(computed) == sorted({tuple(known[:2]), tuple(known[:3])})
    assert not any(module.training for module in [*sasrec.model.modules(), *sasrec._encoder.modules()])


def test_few_shot_runs_and_all_kinds_of_use_share_one_training_on_all_rows(make, sasrec, root):
    few = make("SASRec", "--train_sample_size=4", "--learning_rate=0.5", "--adapter=ilora")
    assert few.fingerprint == sasrec.fingerprint
    assert np.array_equal(few.item_vectors(), sasrec.item_vectors())
    assert len(list((root / "saved" / "stages").glob("auxiliary-SASRec-*"))) == 1
    assert len(rows_of(few).train) > 4
    assert make("SASRec", "--seed=1").fingerprint != sasrec.fingerprint


def test_few_rows_are_those_of_the_llm_and_the_run_tells_how_many(make, sasrec, root):
    few = make("SASRec", "--train_sample_size=9", "--auxiliary_rows=few")
    whole = rows_of(sasrec)
    own = load_rows(few.config, few_shot=True).train.inter_feat
    drawn = take_sample(whole.train, 9, few.config["seed"], "train").inter_feat  # as for the LLM
    assert torch.equal(own["item_id"], drawn["item_id"]) and torch.equal(own["user_id"], drawn["user_id"])
    seen = {int(item) for name in ("item_id", "item_id_list") for item in own[name].flatten() if item}
    assert set(np.flatnonzero(few.known)) == seen and few.fingerprint != sasrec.fingerprint
    assert make("SASRec", "--auxiliary_rows=few").fingerprint == sasrec.fingerprint  # there are no few rows
    stages = StageStore(root / "saved" / "stages")
    assert auxiliary_rows(stages) is None
    for recommender, n_rows in ((sasrec, len(whole.train)), (few, 9)):
        stages.used["auxiliary-SASRec"] = recommender.fingerprint
        assert auxiliary_rows(stages) == n_rows


def test_caser_has_vectors_and_no_state(make, root):
    assert make("Caser").item_vectors().any()
    before = set((root / "saved" / "stages").iterdir())
    with refused("recommender", "conflict"):
        make("Caser", "--seed=2", needs_states=True)
    assert set((root / "saved" / "stages").iterdir()) == before  # refused before it was trained


@pytest.mark.parametrize("name", ["BPR", "Pop"])
def test_a_model_without_sequences_has_no_state(make, name):
    with refused("recommender", "conflict", f"^recommender: {name} gives no state of a sequence alone"):
        make(name, needs_states=True)


def test_a_state_per_position_is_no_state_and_no_vectors_are_no_vectors(make):
    with refused("recommender", "conflict", "^recommender: BERT4Rec gives no state of a sequence alone"):
        _ = make("BERT4Rec", needs_states=True).state_width
    with refused("recommender", "conflict"):
        make("Pop").item_vectors()


def test_a_state_that_is_no_number_names_the_history(make):
    broken = make("SASRec", needs_states=True)
    item = int(broken.known.argmax())
    broken._encoder.item_embedding.weight.data[item] = torch.nan
    with refused("recommender", "numeric", rf"SASRec's state of the history \[{item}\] is not finite; train it"):
        broken.sequence_states([[item]])


@pytest.mark.parametrize("setting", ["item_inter_num_interval: '[2,inf)'", "rm_dup_inter: first", "val_interval: {}"])
def test_a_recommender_learns_from_the_data_of_the_run(make, setting):
    key = setting.partition(":")[0]
    with refused(
        "recommender_config", "conflict", f"recommender_config: '{key}' would give SASRec other data than BIGRec has"
    ):
        make("SASRec", f"--recommender_config={{{setting}}}")


def test_the_epoch_is_chosen_by_these_validation_rows(world, root):
    usual = words_for("BIGRec", world, root / "saved", QUICK)
    config = Config("BIGRec", world.name, argv=[word for word in usual if not word.startswith("--model=")])
    rows = load_rows(own := config.for_auxiliary("SASRec"), few_shot=False)
    fewer = take_sample(rows.valid, len(rows.valid) - 1, 0, "valid")
    stages = [
        AuxiliaryStage(own, "SASRec", Rows(rows.train, valid, rows.test, rows.whole)) for valid in (rows.valid, fewer)
    ]
    assert stages[0].facts() != stages[1].facts()
