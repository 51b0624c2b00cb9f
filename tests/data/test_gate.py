"""What the files say is what is evaluated: rows of every kind of model against plain Python over the same files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import recbole.data.dataset as recbole_datasets
import torch
from recbole.data.dataset import Dataset
from recbole.utils import KGDataLoaderState

from recbole_llm.data import catalog
from recbole_llm.data.atomic import read_atomic
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.recbole_dataset import make_dataset
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs
from recbole_llm.settings.config import Config
from tests.data.plain import Judged, World, before_the_split, in_time, judged_by_hand, make
from tests.processes import forked_python
from tests.refusals import refused
from tests.worlds import make_world, side_file_settings

INTER = ["user_id", "item_id", "timestamp"]
GRAPH = {"inter": INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
MODELS: dict[str, dict[str, Any]] = {
    "Pop": {},
    "SASRec": {},
    "CKE": {"load_col": GRAPH},
    "SASRecF": {"load_col": {"inter": INTER, "item": ["item_id", "class"]}, "selected_features": ["class"]},
    "BIGRec": {},
}
ML_100K = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"


def load(world: World, model: str, few_shot: bool = False, **settings: Any) -> Rows:
    config = Config(model, world.folder.name, config_dict={**world.settings, **MODELS.get(model, {}), **settings})
    return load_rows(config, few_shot)


def judged_by(rows: Rows) -> Judged:
    users, items = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    found: Judged = {}
    for part in ("valid", "test"):
        pairs, (histories, lengths) = row_pairs(getattr(rows, part)), row_histories(getattr(rows, part))
        read = [tuple(items[row[:length]].tolist()) for row, length in zip(histories, lengths, strict=True)]
        triples = zip(users[pairs[:, 0]].tolist(), read, items[pairs[:, 1]].tolist(), strict=True)
        found[part] = sorted(triples)
    return found


def learned_pairs(rows: Rows) -> Counter[tuple[str, str]]:
    """(user, item) of what a general model learns from, by the outside ids of its own data set."""
    train = rows.train.inter_feat
    users, items = (rows.train.field2id_token[name][train[name].numpy()].tolist() for name in ("user_id", "item_id"))
    return Counter(zip(users, items, strict=True))


def check(world: World) -> None:
    expected, digests = judged_by_hand(world), set()
    for model in MODELS:
        rows = load(world, model)
        assert judged_by(rows) == expected, model
        digests.add(rows.evaluated())
        assert (rows.train.field2id_token["item_id"] == rows.whole.field2id_token["item_id"]).all()
        if model in ("Pop", "CKE"):
            assert learned_pairs(rows) == before_the_split(world), model
    assert len(digests) == 1


def test_8_random_worlds_are_judged_as_plain_python_reads_them(tmp_path):
    for seed in range(8):
        check(make(tmp_path / f"world{seed}", seed))


@pytest.mark.slow
def test_200_random_worlds_are_judged_as_plain_python_reads_them(tmp_path):
    for seed in range(8, 208):
        check(make(tmp_path / f"world{seed}", seed))


# ------------------------------------------------------------------------------------------------ real data and RecBole


def ml_100k_world() -> World:
    return World(ML_100K, {"data_path": str(ML_100K.parent)}, "utf-8", "\t")


SLOW = [pytest.param(model, marks=pytest.mark.slow) for model in ("Pop", "CKE", "SASRec")]


@pytest.mark.parametrize("model", ["BIGRec", *SLOW])
def test_ml_100k_targets_are_the_latest_interactions_by_exact_time(model):
    """As plain Python reads them; of a general model, what it learns from too."""
    rows = load(ml_100k_world(), model)
    assert len(rows.test) == 943 and judged_by(rows) == judged_by_hand(ml_100k_world())
    if model in ("Pop", "CKE"):
        assert learned_pairs(rows) == before_the_split(ml_100k_world())


RECBOLE_ALONE = """
import sys
import torch
from recbole_llm import compat

compat.apply()
assert not any(name.startswith("recbole_llm.data") for name in sys.modules)
from recbole.config import Config
from recbole.data import create_dataset

folder, name, out = sys.argv[1:]
sys.argv = sys.argv[:1]
for model in ("SASRec", "DIEN", "Pop"):
    settings = {"data_path": folder, "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 10, "val_interval": None}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}, "LABEL_FIELD": "label"}
    mode = "labeled" if model == "DIEN" else "full"
    settings |= {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": mode}}
    settings |= {"metrics": ["AUC"], "valid_metric": "AUC"} if model == "DIEN" else {}
    parts = create_dataset(Config(model, name, config_dict=settings)).build()
    torch.save([part.inter_feat.interaction for part in parts], f"{out}/{model}.pt")
"""


def test_recboles_own_tensors_stay_bit_equal_on_a_file_in_order_of_time(tmp_path):
    rng = np.random.default_rng(3)
    folder = tmp_path / "sorted"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    times = 1_700_000_000 + np.cumsum(rng.integers(0, 20, 400))  # nearer than single precision tells apart
    lines += [f"u{rng.integers(20)}\ti{rng.integers(30)}\t{rng.integers(1, 6)}\t{time}" for time in times]
    (folder / "sorted.inter").write_text("\n".join(lines) + "\n")
    forked_python(RECBOLE_ALONE, tmp_path, "sorted", tmp_path)
    inter = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
    classes = {"SASRec": recbole_datasets.SequentialDataset, "DIEN": recbole_datasets.DIENDataset, "Pop": Dataset}
    for model in ("SASRec", "DIEN", "Pop"):
        kept = torch.load(tmp_path / f"{model}.pt")
        config = Config(model, "sorted", config_dict={"data_path": str(tmp_path), "load_col": inter})
        found = make_dataset(classes[model], config)
        for expected, part in zip(kept, found.build(), strict=True):
            own = part.inter_feat.interaction
            assert list(own) == list(expected)
            for name, column in expected.items():
                if not name.startswith("neg_"):  # DIEN draws negatives
                    assert own[name].dtype == column.dtype and torch.equal(own[name], column), (model, name)


def test_single_precision_would_have_changed_the_rows_of_this_test(tmp_path):
    """The worlds above are not so easy that RecBole's own order would pass them."""
    wrong = 0
    for seed in range(12):
        world = make(tmp_path / f"world{seed}", seed)
        rows = load(world, "SASRec")
        order = np.argsort(np.float32(rows.whole.time_order[rows.whole.in_time.lines]), kind="stable")
        wrong += (order != np.arange(len(order))).any() or list(in_time(world)) != sorted(in_time(world))
    assert wrong > 6


def test_a_split_at_one_time_is_at_that_time_exactly(tmp_path):
    """Single precision would round all of these times to the same number, so that nothing came after the cut."""
    rng = np.random.default_rng(5)
    table = [(f"u{rng.integers(6)}", f"i{rng.integers(9)}", 1_700_000_000 + second) for second in rng.permutation(60)]
    world = write(tmp_path / "cut", table)
    rows = load(world, "SASRec", eval_args={"split": {"TS": [0.6, 0.2, 0.2]}})
    first = {user: min(time for other, _, time in table if other == user) for user, _, _ in table}
    times = [time for user, _, time in table if time > first[user]]  # of the targets
    cut = np.percentile(times, 80)
    expected = sorted((user, item) for user, item, time in table if time > first[user] and time > cut)
    assert sorted((user, item) for user, _, item in judged_by(rows)["test"]) == expected and expected


@pytest.mark.parametrize(("start", "step"), [(1_700_000_000_000_000_000, 1), (10**25, 7), (1_700_000_000_000, 1)])
@pytest.mark.parametrize("model", ["SASRec", "DIEN"])
def test_a_split_at_one_time_tells_times_apart_that_double_precision_does_not(tmp_path, start, step, model):
    rng = np.random.default_rng(5)
    ticks = rng.permutation(60).tolist()
    table = [(f"u{rng.integers(6)}", f"i{rng.integers(9)}", start + step * tick, tick % 2) for tick in ticks]
    world = write(tmp_path / "cut", table, "user_id:token\titem_id:token\ttimestamp:float\tlabel:float")
    inter = {"inter": [*INTER, "label"]}
    rows = load(world, model, load_col=inter, eval_args={"split": {"TS": [0.6, 0.2, 0.2]}})
    first = {user: min(time for other, _, time, _ in table if other == user) for user, _, _, _ in table}
    cut = np.percentile([(time - start) // step for user, _, time, _ in table if time > first[user]], 80)
    late = [(user, item) for user, item, time, _ in table if time > first[user] and (time - start) // step > cut]
    assert sorted((user, item) for user, _, item in judged_by(rows)["test"]) == sorted(late) and late
    times = rows.test.inter_feat["timestamp"]  # RecBole's, in single precision, as anywhere else
    assert times.dtype == torch.float32 and (times == np.float32(start)).all() or start == 1_700_000_000_000
    own = rows.test.inter_feat["timestamp_list"]
    real = torch.arange(own.shape[1]) < rows.test.inter_feat["item_length"][:, None]
    assert (own[real] >= np.float32(start)).all() and not own[~real].any()


def test_shares_of_all_rows_in_time_are_cut_exactly(tmp_path):
    rng = np.random.default_rng(6)
    table = [(f"u{rng.integers(6)}", f"i{rng.integers(9)}", 1_700_000_000 + second) for second in rng.permutation(60)]
    rows = load(
        write(tmp_path / "shares", table), "SASRec", eval_args={"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": None}
    )
    first = {user: min(time for other, _, time in table if other == user) for user, _, _ in table}
    targets = sorted((time, user, item) for user, item, time in table if time > first[user])
    expected = [(user, item) for _, user, item in targets[len(targets) - len(rows.test) :]]
    assert sorted((user, item) for user, _, item in judged_by(rows)["test"]) == sorted(expected)
    assert len(rows.test) == len(targets) // 5


# ------------------------------------------------------------------------------------------------- one id map


@pytest.fixture
def world(tmp_path) -> World:
    return make(tmp_path / "gate", 4)


def use(monkeypatch: pytest.MonkeyPatch, model: str, base: type[Dataset], **methods: Any) -> None:
    """Give a model a data set class of its own, found by its name as RecBole finds it."""
    monkeypatch.setattr(recbole_datasets, f"{model}Dataset", type(f"{model}Dataset", (base,), methods), raising=False)


def test_a_data_set_class_that_renumbers_is_joined_by_outside_ids(world, monkeypatch):
    def _remap(self: Dataset, remap_list: list[Any]) -> None:
        self.inter_feat.sort_values("item_id", ascending=False, inplace=True)
        Dataset._remap(self, [(feat, *rest) for feat, *rest in remap_list])

    expected = learned_pairs(load(world, "Pop"))
    use(monkeypatch, "Pop", Dataset, _remap=_remap)
    rows = load(world, "Pop")
    assert learned_pairs(rows) == expected
    assert (rows.train.field2id_token["item_id"] == rows.whole.field2id_token["item_id"]).all()


def test_a_data_set_class_that_drops_training_interactions_is_joined_by_lines(world, monkeypatch):
    learned = before_the_split(world)
    user, item = next(pair for pair, count in learned.items() if count == 1 and (Counter(in_time(world))[pair]) == 1)

    def _data_filtering(self: Dataset) -> None:
        Dataset._data_filtering(self)
        gone = (self.inter_feat["user_id"] == user) & (self.inter_feat["item_id"] == item)
        self.inter_feat.drop(self.inter_feat.index[gone], inplace=True)

    use(monkeypatch, "Pop", Dataset, _data_filtering=_data_filtering)
    assert learned_pairs(load(world, "Pop")) == learned - Counter([(user, item)])


@pytest.mark.parametrize("reset", [False, True])
def test_a_model_whose_data_set_drops_judged_rows_is_refused_with_the_count(world, monkeypatch, reset):
    targets = judged_by_hand(world)["test"]

    def _data_filtering(self: Dataset) -> None:
        Dataset._data_filtering(self)
        gone = self.inter_feat["user_id"].isin([user for user, _, _ in targets[:3]])
        self.n_gone = int(gone.sum())
        self.inter_feat.drop(self.inter_feat.index[gone], inplace=True)
        if reset:
            self.inter_feat.reset_index(drop=True, inplace=True)

    for model, base in (("Pop", Dataset), ("SASRec", recbole_datasets.SequentialDataset)):
        use(monkeypatch, model, base, _data_filtering=_data_filtering)
        with refused("model", "conflict", r"leaves out \d+ ") as caught:
            load(world, model)
        assert "\n" not in str(caught.value)


def test_a_data_set_class_that_makes_other_rows_is_refused(world, monkeypatch):
    def data_augmentation(self: Any) -> None:
        recbole_datasets.SequentialDataset.data_augmentation(self)
        self.inter_feat["item_id_list"] = self.inter_feat["item_id_list"].flip(0)

    use(monkeypatch, "SASRec", recbole_datasets.SequentialDataset, data_augmentation=data_augmentation)
    with refused(
        "model", "conflict", r"\d+ of \d+ rows of SASRec's data set class SASRecDataset are not a user's next"
    ):
        load(world, "SASRec")


def test_the_digest_sees_histories_by_outside_ids_whole_as_they_are(tmp_path):
    rows = [("u", item, n) for n, item in enumerate("abcdef")]
    digests = []
    for name, items in (("one", "abcdef"), ("two", "bacdef"), ("three", "abcdfe")):
        world = write(tmp_path / name, [("u", item, n) for n, item in enumerate(items)])
        loaded = load(world, "SASRec")
        digests.append(loaded.evaluated())
        # How much of a history a model reads is its own affair.
        assert load(world, "SASRec", MAX_ITEM_LIST_LENGTH=1).evaluated() == digests[-1]
    assert len(set(digests)) == 3
    world = write(tmp_path / "more", rows)
    (world.folder / "more.item").write_text("item_id:token\ttitle:token\nz\tZ\na\tA\n")
    assert load(world, "BIGRec").evaluated() == load(world, "Pop").evaluated() == digests[0]


def write(
    folder: Path, table: list[tuple[Any, ...]], header: str = "user_id:token\titem_id:token\ttimestamp:float"
) -> World:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, row)) for row in table)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return World(folder, {"data_path": str(folder.parent)}, "utf-8", "\t")


@pytest.mark.parametrize("model", ["SASRec", "DIEN", "KSR", "GRU4RecKG", "CKE", "Pop", "BIGRec"])
def test_every_data_set_class_of_recbole_numbers_users_and_items_alike(tmp_path, model):
    folder = make_world(tmp_path / "alike", n_users=8, n_items=12)
    links = (folder / "alike.link").read_text().splitlines()
    (folder / "alike.link").write_text("\n".join(links[: len(links) // 2]) + "\n")
    settings = {"data_path": str(tmp_path), **(MODELS.get(model, {}) or side_file_settings(model))}
    whole = load_rows(Config("SASRec", "alike", config_dict={"data_path": str(tmp_path)}), False)
    if model == "DIEN":
        settings |= {"threshold": {"rating": 3}}
    rows = load_rows(Config(model, "alike", config_dict=settings), False)
    for field in ("user_id", "item_id"):
        assert rows.train.field2id_token[field].tolist() == whole.whole.field2id_token[field].tolist()


def test_scores_of_a_knowledge_model_are_of_the_items_they_are_taken_for(world):
    """CKE's training loader names, by the judge's ids, pairs that its user has had before the split."""
    config = Config("CKE", world.folder.name, config_dict={**world.settings, **MODELS["CKE"]})
    rows = load_rows(config, False)
    users, items = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    seen = Counter()
    loader = train_loader(config, rows)
    loader.set_mode(KGDataLoaderState.RS)
    for batch in loader:
        pairs = zip(users[batch["user_id"].numpy()], items[batch["item_id"].numpy()], strict=True)
        seen.update((str(user), str(item)) for user, item in pairs)
    assert set(seen) == set(before_the_split(world))
    shown = [
        (users[user], items[item])
        for _, _, batch_users, batch_items in eval_loader(config, rows, "test")
        for user, item in zip(batch_users.tolist(), batch_items.tolist(), strict=True)
    ]
    assert len(shown) == len(rows.test)
    entities = rows.train.field2id_token["entity_id"]
    for item, entity in rows.train.item2entity.items():
        assert entities[rows.train.field2token_id["item_id"][item]] == entity
    heads = {entities[head] for head in rows.train.kg_feat["head_id"].numpy()}
    lines = (world.folder / f"{world.folder.name}.kg").read_bytes().decode(world.encoding).split("\n")[1:]
    assert heads == {line.split(world.separator)[0] for line in lines if line.strip()}


# ------------------------------------------------------------------------------------------------- titles and seeds


def test_titles_are_those_of_the_file_and_items_without_a_line_have_none(tmp_path):
    table = [(f"u{n}", item, t) for n in range(3) for t, item in enumerate(["NA", "b", "gone", "i ", "b"])]
    world = write(tmp_path / "titles", table)
    lines = ['NA\t"Heroes', "b\tNone", "b\tAgain", "i\tOther", 'never\tRuler 12"']
    (world.folder / "titles.item").write_text("\n".join(["item_id:token\ttitle:token", *lines]) + "\n")
    rows = load(world, "BIGRec")
    catalog = ItemCatalog.from_dataset(rows.whole, "title")
    found = dict(zip(catalog.tokens, catalog.titles, strict=True))
    assert found == {
        "[PAD]": None,
        "NA": '"Heroes',
        "b": "None",
        "gone": None,
        "i ": None,
        "i": "Other",
        "never": 'Ruler 12"',
    }
    notes = " ".join(note for _, note in rows.whole.reading.notes)
    assert "6 interactions are with 2 of 6 items that have no line in titles.item" in notes and "'gone', 'i '" in notes
    assert "'i ' differs from 'i' by blanks alone" in notes
    assert "titles.item: 1 lines repeat the item_id of an earlier line, which counts (first: 'b', line 4)" in notes
    assert judged_by(rows) == judged_by(load(world, "Pop")) == judged_by_hand(world)
    left_out = load(world, "BIGRec", filter_inter_by_user_or_item=True).whole.reading
    assert (left_out.interactions, left_out.kept, sum(left_out.dropped.values())) == (15, 9, 6)


def test_items_that_only_models_of_titles_rank_are_told(tmp_path, monkeypatch):
    table = [(f"u{n}", item, t) for n in range(3) for t, item in enumerate("abcd")]
    world = write(tmp_path / "more", table)
    file = world.folder / "more.item"
    file.write_text("item_id:token\ttitle:token\n" + "".join(f"{item}\tTitle {item}\n" for item in "abcdxyx"))

    def told(model: str, **settings: Any) -> list[str]:
        rows = load(world, model, **settings)
        n_items = rows.whole.item_num - 1
        notes = [note for _, note in rows.whole.reading.notes if "have no interaction" in note]
        assert (n_items, len(notes)) in ((4, 1), (6, 0), (4, 0))
        return notes

    alone = {"load_col": {"inter": INTER}}
    reads: list[Path] = []
    monkeypatch.setattr(catalog, "read_atomic", lambda file, *more: reads.append(file) or read_atomic(file, *more))
    for model in ("Pop", "SASRec"):
        assert told(model, **alone)[0].startswith(f"more.item: 2 items have no interaction; {model} does not load")
        assert not told(model, load_col={"inter": INTER, "item": ["item_id"]})
    assert not told("BIGRec") and reads == [file]  # once for all models
    file.write_text("item_id:token\ttitle:token\nbroken\n")  # a file that is not needed
    assert not told("SASRec", **alone) and len(reads) == 2
    file.unlink()
    assert not told("SASRec", **alone)


def test_seeds_draw_training_rows_and_sample_seed_draws_the_others(world):
    sizes = {"train_sample_size": 5, "valid_sample_size": 3, "test_sample_size": 3}
    first, other = (load(world, "BIGRec", few_shot=True, seed=seed, **sizes) for seed in (1, 2))
    assert first.evaluated() == other.evaluated()
    assert row_pairs(first.train).tolist() != row_pairs(other.train).tolist()
    drawn = {load(world, "BIGRec", sample_seed=seed, **sizes).evaluated() for seed in range(4)}
    assert len(drawn) > 1


def test_counts_before_the_split_are_the_same_for_every_model(world):
    expected = Counter(item for (_, item), count in before_the_split(world).items() for _ in range(count))
    for model, few_shot in (("Pop", False), ("SASRec", False), ("BIGRec", True), ("CKE", False), ("Pop", True)):
        rows = load(world, model, few_shot=few_shot, train_sample_size=4)
        items = rows.whole.field2id_token["item_id"]
        assert {str(items[n]): count for n, count in enumerate(rows.train.item_counts) if count} == expected
