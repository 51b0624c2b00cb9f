"""RecBole's own models through our command: each trains and is evaluated, and SASRec is the one that RecBole trains."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import recbole
import yaml

from recbole_llm.quick_start import main
from recbole_llm.settings.models import recbole_models
from tests.processes import forked_python
from tests.worlds import make_world, side_file_settings

N_ITEMS = 30
SEQUENTIAL = [name for name, place in recbole_models().items() if ".sequential_recommender." in place]
GENERAL = ["Pop", "ItemKNN", "BPR", "LightGCN", "NGCF", "NCL", "GCMC", "SpectralCF", "NeuMF", "DMF", "MultiVAE"]
KNOWLEDGE = ["CFKG", "CKE", "KGCN", "MKR"]
CLICK = ["FM", "DeepFM"]
QUICK = ("Pop", "SASRec", "LightGCN")
# Where RecBole's defaults are larger than the world, or a first stage has epochs of its own.
SMALLER: dict[str, dict[str, Any]] = {
    "GRU4RecCPR": {"reranker_CAN_NUM": 10},
    "NCL": {"num_clusters": 5},
    "S3Rec": {"pretrain_epochs": 1},
    "SASRecCPR": {"reranker_CAN_NUM": 10},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "tiny", n_items=N_ITEMS)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to ``saved`` in the working directory."""
    monkeypatch.chdir(tmp_path)


def words(model: str, world: Path, **settings: Any) -> list[str]:
    """A command line for one epoch."""
    settings = {"model": model, "dataset": world.name, "data_path": str(world.parent), "epochs": 1, **settings}
    return [f"--{key}={value}" for key, value in settings.items()]


def run(model: str, world: Path, **settings: Any) -> Path:
    """One command that ends well; returns the run folder."""
    before = set(Path("saved").glob(f"{model}-*"))
    assert main(words(model, world, show_progress=False, **settings)) == 0
    (folder,) = set(Path("saved").glob(f"{model}-*")) - before
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any, **settings: Any) -> str:
    """The one line with which a command ends badly."""
    assert main(words(*arguments, **settings)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


def read_ranks(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """What each user got: the target, and the best items in order."""
    with open(folder / "test_ranks.csv", encoding="utf-8") as file:
        return {row["user_id"]: (row["item_id"], row["top_items"].split()) for row in csv.DictReader(file)}


def read_metrics(folder: Path) -> dict[str, dict[str, float]]:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for part in ("valid", "test"):
        assert metrics[part] and all(math.isfinite(value) for value in metrics[part].values())
    return metrics


def last_items(world: Path) -> dict[str, str]:
    """Each user's latest item."""
    with open(world / f"{world.name}.inter", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: float(row["timestamp:float"]))
    return {row["user_id:token"]: row["item_id:token"] for row in rows}


def all_but_the_quickest_are_slow(models: list[str]) -> list[Any]:
    return [pytest.param(model, marks=() if model in QUICK else pytest.mark.slow) for model in models]


@pytest.mark.parametrize("model", all_but_the_quickest_are_slow(SEQUENTIAL + GENERAL + KNOWLEDGE))
def test_a_model_trains_and_ranks_the_whole_catalogue_for_each_users_last_item(model: str, world: Path) -> None:
    settings = {**side_file_settings(model), **SMALLER.get(model, {})}
    folder = run(model, world, topk=[1, 5, N_ITEMS + 10], metrics=["Recall", "NDCG", "MRR", "Hit"], **settings)

    metrics, ranks = read_metrics(folder), read_ranks(folder)
    assert {user: target for user, (target, _) in ranks.items()} == last_items(world)
    assert all(sorted(top) == sorted(f"i{index}" for index in range(1, N_ITEMS + 1)) for _, top in ranks.values())
    assert metrics["test"][f"recall@{N_ITEMS + 10}"] == 1
    reciprocal = [1 / (1 + top.index(target)) for target, top in ranks.values()]
    assert metrics["test"][f"mrr@{N_ITEMS + 10}"] == pytest.approx(sum(reciprocal) / len(ranks))


@pytest.mark.slow
@pytest.mark.parametrize("model", CLICK)
def test_a_model_of_clicks_is_judged_on_labelled_rows(model: str, world: Path) -> None:
    metrics = read_metrics(run(model, world, threshold={"rating": 4}))
    assert set(metrics["test"]) == {"auc", "logloss"}


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        ("SASRecCPR", {}, "selected index k out of range"),
        ("S3Rec", {"train_stage": "finetune"}, "pre_model_path"),
        ("S3Rec", {"train_stage": "both"}, "train_stage"),
        ("FDSA", {}, "class"),
        ("GRU4RecKG", {}, "knowledge graph"),
        ("FM", {}, "--threshold=\"{'rating': 4}\""),
    ],
)
def test_what_a_model_lacks_is_told_in_one_line(model, settings, named, world, capsys) -> None:
    settings = {**(side_file_settings(model) if model == "S3Rec" else {}), **settings}
    line = refusal(capsys, model, world, **settings)
    assert named in line and model in line


@pytest.mark.parametrize(
    ("model", "module"),
    [("KGAT", "dgl"), ("KGIN", "torch_scatter"), ("MCCLK", "torch_scatter"), ("XGBoost", "xgboost")],
)
def test_a_missing_package_is_named(model: str, module: str, world: Path, capsys) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    assert "pip install" in refusal(capsys, model, world)


# ---------------------------------------------------------------------------------------------------------- stages


@pytest.mark.slow
def test_a_model_of_two_stages_is_finetuned_by_the_command_that_pretrains_it(world: Path) -> None:
    settings = {**side_file_settings("S3Rec"), "pretrain_epochs": 2}
    at_once = run("S3Rec", world, **settings)
    pretrained = at_once / "pretrain.pth"
    second = run("S3Rec", world, train_stage="finetune", pre_model_path=pretrained.absolute(), **settings)
    assert read_ranks(at_once) == read_ranks(second)
    assert read_metrics(at_once) == read_metrics(second)

    untuned = run("S3Rec", world, **{**settings, "epochs": 0})
    assert read_ranks(untuned) != read_ranks(at_once)


# ---------------------------------------------------------------------------------------------- RecBole's quick start


def test_a_knowledge_model_stands_beside_others_when_links_cover_a_part(tmp_path, monkeypatch) -> None:
    """Under RecBole's own ids its scores would be of other items, with half of the interactions missing."""
    folder = make_world(tmp_path / "half", n_users=20, n_items=N_ITEMS)
    links = (folder / "half.link").read_text().splitlines()
    (folder / "half.link").write_text("\n".join(links[: len(links) // 2]) + "\n")
    # One item is everybody's last but two, so that a model that learns of it ranks it first.
    header, *lines = (folder / "half.inter").read_text().splitlines()
    lines += [f"u{n}\ti29\t5\t{100 * k}" for n in range(1, 21) for k in range(6)]
    (folder / "half.inter").write_text("\n".join([header, *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    columns = "inter: [user_id, item_id, timestamp], kg: [head_id, relation_id, tail_id], link: [item_id, entity_id]"
    words = [
        "--model=Pop,CKE",
        "--dataset=half",
        f"--data_path={tmp_path}",
        f"--load_col={{{columns}}}",
        "--topk=[1,5]",
    ]
    words += [
        "--CKE.epochs=30",
        "--CKE.learning_rate=0.01",
        "--CKE.eval_step=0",
        "--valid_metric=MRR@5",
        "--show_progress=False",
    ]
    assert main([*words, "--metrics=[MRR,AveragePopularity]"]) == 0
    shown = {}
    for model in ("Pop", "CKE"):
        (run,) = Path("saved").glob(f"{model}-half-*")
        with open(run / "test_ranks.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shown[model] = {(row["user_id"], row["item_id"]): row["top_items"].split()[0] for row in rows}
    assert shown["Pop"].keys() == shown["CKE"].keys()
    assert set(shown["Pop"].values()) == set(shown["CKE"].values()) == {"i29"}


QUICK_START = """
import json, sys
from pathlib import Path

assert not any(name.startswith("recbole_llm") for name in sys.modules)
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils.case_study import full_sort_topk

settings, sys.argv = json.loads(sys.argv[1]), sys.argv[:1]
results = run_recbole(model="SASRec", dataset=settings.pop("dataset"), config_dict=settings)
(checkpoint,) = Path(settings["checkpoint_dir"]).glob("SASRec-*.pth")
config, model, dataset, _, _, test_data = load_data_and_model(str(checkpoint))
users = test_data.dataset.inter_feat[dataset.uid_field]
_, top = full_sort_topk(users.numpy(), model, test_data, k=20, device=config["device"])
ids = dict(zip(dataset.id2token(dataset.uid_field, users), dataset.id2token(dataset.iid_field, top.cpu()).tolist()))
metrics = {"valid": results["best_valid_result"], "test": results["test_result"]}
print(json.dumps({"metrics": metrics, "ids": ids}))
"""


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="RecBole's quick start needs ray")
@pytest.mark.parametrize("dataset", ["tiny", pytest.param("ml-100k", marks=pytest.mark.slow)])
def test_sasrec_gives_the_same_items_as_recboles_own_quick_start(dataset: str, world: Path) -> None:
    # RecBole sorts times in single precision: what it is given here is in order already, so that both sort alike.
    # (RecBole takes its own copy of whatever is called ml-100k.)
    if dataset != world.name:
        world = in_order_of_time(dataset)
        dataset = world.name
    settings = {"data_path": str(world.parent)}
    folder = run_words(
        ["--model=SASRec", f"--dataset={dataset}", "--epochs=2", "--show_progress=False", "--category_field=~"],
        **settings,
    )
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    recbole = quick_start(
        {
            **settings,
            "dataset": dataset,
            "load_col": config["load_col"],
            "checkpoint_dir": str(Path("recbole").absolute()),
            "epochs": 2,
            "seed": 2020,
            "MAX_ITEM_LIST_LENGTH": 10,
            "train_neg_sample_args": None,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "repeatable": True,
            "metrics": ["Recall", "NDCG", "MRR", "Hit"],
            "topk": [1, 5, 10, 20],
            "valid_metric": "MRR@10",
            "show_progress": False,
        }
    )
    assert {user: top for user, (_, top) in read_ranks(folder).items()} == recbole["ids"]
    ours = read_metrics(folder)
    assert recbole["metrics"] == {
        part: {name: round(value, 4) for name, value in ours[part].items()} for part in ("valid", "test")
    }


def in_order_of_time(dataset: str) -> Path:
    """The interactions of a data set that comes with RecBole, sorted by exact time. Returns: the folder."""
    folder = Path("sorted").absolute() / f"sorted-{dataset}"
    folder.mkdir(parents=True)
    source = Path(recbole.__file__).parent / "dataset_example" / dataset / f"{dataset}.inter"
    header, *lines = source.read_text().splitlines()
    place = [column.partition(":")[0] for column in header.split("\t")].index("timestamp")
    lines.sort(key=lambda line: int(line.split("\t")[place]))
    (folder / f"{folder.name}.inter").write_text("\n".join([header, *lines]) + "\n")
    return folder


def run_words(command: list[str], **settings: Any) -> Path:
    assert main([*command, *(f"--{key}={value}" for key, value in settings.items())]) == 0
    (folder,) = Path("saved").glob("SASRec-*")
    return folder


def quick_start(settings: dict[str, Any]) -> dict[str, Any]:
    """RecBole alone, in a process of its own; torch's switch lets it read the checkpoint that it has just written."""
    done = forked_python(
        QUICK_START, json.dumps(settings), cwd=Path.cwd(), env={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])
