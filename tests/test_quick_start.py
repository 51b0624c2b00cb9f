"""The command end to end: what it writes, that all models are evaluated alike, and what runs share."""

from __future__ import annotations

import csv
import json
import logging
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import recbole_llm
from recbole_llm.data.rows import load_rows
from recbole_llm.evaluation.collector import RowCollector
from recbole_llm.experiment.command import VERBS
from recbole_llm.experiment.run import run_one
from recbole_llm.model.base import LLMRecommender
from recbole_llm.quick_start import load_data_and_model, main, run_recbole_llm
from recbole_llm.recbole_checkpoints import load_checkpoint
from recbole_llm.report.rows import has_pyarrow
from recbole_llm.settings.config import Config
from tests.families import save_family
from tests.refusals import refused
from tests.runs import histories_in, metrics_of, words_for, working_in
from tests.worlds import make_world


def pairs_of(finished: Any, label: str) -> list[tuple[str, str]]:
    return sorted((row["user_id"], row["item_id"]) for row in finished.ranks(label))


# ------------------------------------------------------------------------------------------------- what is written


def test_one_command_writes_one_table_in_four_formats_with_its_rows_and_plots(side_by_side, world):
    assert side_by_side.status == 0
    plots = {f"{name}.{kind}" for name in ("comparison", "cost", "learning") for kind in ("pdf", "png", "svg")}
    tables = {f"results.{kind}" for kind in ("csv", "json", "md", "tex")}
    rows = {"rows.parquet"} if has_pyarrow() else set()
    assert {path.name for path in side_by_side.results.iterdir()} == tables | plots | rows | {"report.html"}
    table = side_by_side.table
    assert [result.model for result in table.results] == ["Pop", "SASRec", "BIGRec"]
    assert [result.seed for result in table.results] == [2020] * 3
    assert all(table.environment[name] for name in ("python", "recbole", "torch", "transformers", "numpy"))
    assert len(table.data_hash["world"]) == 64 and "--model=Pop,SASRec,BIGRec" in table.command
    markdown = (side_by_side.results / "results.md").read_text()
    assert all(word in markdown for word in ("Pop", "SASRec", "BIGRec", "not for quality claims", *table.environment))
    with open(side_by_side.results / "results.csv", newline="") as file:
        lines = {line["model"]: line for line in csv.DictReader(file)}
    for result in table.results:
        assert {name: float(lines[result.model][name]) for name in result.test} == result.test
        assert result.n_rows == 12 and result.wall_seconds > 0 and result.epochs > 0


@pytest.mark.parametrize("label", ["Pop", "SASRec", "BIGRec"])
def test_the_tables_numbers_are_those_of_the_ranks_of_the_run(side_by_side, label):
    for phase, metrics in (("test", side_by_side.result(label).test), ("valid", side_by_side.result(label).valid)):
        ranks = [int(row["rank"] or 0) for row in side_by_side.ranks(label, phase)]
        assert metrics == pytest.approx(metrics_of(ranks, (1, 5, 10)), abs=1e-14)
        assert side_by_side.json(label, "metrics.json")[phase] == metrics
        for row in side_by_side.ranks(label, phase):
            best = row["top_items"].split()
            assert row["item_id"] in best if int(row["rank"]) <= 10 else row["item_id"] not in best
            assert int(row["rank"]) > 10 or best.index(row["item_id"]) == int(row["rank"]) - 1


def test_all_models_are_judged_on_each_users_last_item(side_by_side, world):
    expected = sorted((user, items[-1]) for user, items in histories_in(world).items())
    for label in ("Pop", "SASRec", "BIGRec"):
        assert pairs_of(side_by_side, label) == expected


def test_pop_counted_the_interactions_before_the_split_and_no_other(side_by_side, world):
    counts = Counter(item for items in histories_in(world).values() for item in items[:-2])
    state = load_checkpoint(side_by_side.folders["Pop"] / "model.pth")
    names = load_rows(Config("Pop", "world", config_dict={"data_path": str(world.parent)}), False).whole
    found = state["other_parameter"]["item_cnt"].flatten().tolist()
    assert {names.id2token("item_id", item): n for item, n in enumerate(found) if n} == counts
    assert side_by_side.result("Pop").train_rows == sum(counts.values())


def test_a_run_folder_says_what_was_run(side_by_side):
    settings = yaml.safe_load((side_by_side.folders["BIGRec"] / "config.yaml").read_text())
    assert (settings["seed"], settings["num_beams"], settings["adapter"]) == (2020, 2, "lora")
    assert set(side_by_side.json("BIGRec", "stages.json")) == {"tiny-llm", "item-embeddings", "fine-tune"}
    assert [record["epoch"] for record in side_by_side.json("BIGRec", "history.json")] == [1, 2]
    best = side_by_side.json("BIGRec", "history.json")[side_by_side.result("BIGRec").best_epoch - 1]
    assert best["valid"] == side_by_side.result("BIGRec").valid  # the best epoch was restored


@pytest.mark.parametrize("label", ["Pop", "SASRec", "BIGRec"])
def test_a_run_folder_ranks_again(side_by_side, label):
    folder = side_by_side.folders[label]
    with working_in(folder.parent.parent):
        _, model, dataset, train_data, _, test_data = load_data_and_model(folder)
    assert len(train_data.dataset) == side_by_side.result(label).train_rows
    ranks = {row["user_id"]: row["top_items"].split() for row in side_by_side.ranks(label)}
    for rows, *_ in test_data:
        with torch.no_grad():
            scores = model.full_sort_predict(rows.to(model.device)).view(len(rows), -1)
        for user, own in zip(rows["user_id"].tolist(), scores, strict=True):
            best = own[1:].argsort(descending=True, stable=True)[:5] + 1  # ties go to the lower id
            expected = ranks[dataset.id2token("user_id", user)][:5]
            assert [item for item in dataset.id2token("item_id", best)] == expected


def test_reweighting_is_loaded_with_a_run(command):
    finished = command("BIGRec", "--reweight=popularity", "--gamma=2")
    with working_in(finished.folders["BIGRec"].parent.parent):
        _, model, dataset, *_, test_data = load_data_and_model(finished.folders["BIGRec"])
    scores = torch.cat([model.full_sort_predict(rows) for rows, *_ in test_data])
    best = scores[:, 1:].argsort(dim=1, descending=True, stable=True)[:, 0] + 1
    assert [row["top_items"].split()[0] for row in finished.ranks("BIGRec")] == list(dataset.id2token("item_id", best))


def test_a_folder_that_no_run_left_is_refused(tmp_path):
    with refused("", "file"):
        load_data_and_model(tmp_path)


def test_a_run_log_has_its_own_lines_only_and_logging_is_left_as_it_was(side_by_side, command):
    labels = ("Pop", "SASRec", "BIGRec")
    for label in labels:
        text = side_by_side.log(label)
        assert f"{label} test:" in text and "\x1b[" not in text
        assert not any(f"{other} test:" in text for other in labels if other != label)
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    command("Pop", "--state=WARNING")
    assert (root.level, list(root.handlers)) == before


def test_what_starts_in_the_same_second_has_folders_of_its_own(command, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "2000-01-01_00-00-00")
    first, second = command("Pop"), command("Pop")
    assert first.folders["Pop"].name == "Pop-world-2000-01-01_00-00-00"
    assert second.folders["Pop"].name == "Pop-world-2000-01-01_00-00-00-2"
    assert first.results != second.results and second.table.results


def test_as_a_library_it_gives_recboles_keys_and_a_full_log(world, tmp_path):
    settings = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path), "valid_metric": "NDCG@5"}
    with working_in(tmp_path):
        result = run_recbole_llm("Pop", "world", config_dict=settings)
    assert set(result) == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@5"] and result["valid_score_bigger"]
    folder = next(tmp_path.glob("Pop-*"))
    assert json.loads((folder / "metrics.json").read_text())["test"] == result["test_result"]
    assert "epoch 0 training" in next(folder.glob("*.log")).read_text()


def test_recboles_function_checks_what_ours_checks(world, tmp_path):
    settings = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path)}
    with refused("load_col", "data", "has no column 'nope'"):
        load_col = {"inter": ["user_id", "item_id", "timestamp", "nope"]}
        run_recbole_llm("Pop", "world", config_dict={**settings, "load_col": load_col}, saved=False)


def test_keys_that_nothing_reads_are_told_of(command):
    words = ("--save_dataloaders=True", "--dataset_save_path=absent.pth", "--shuffle=False")
    finished = command("Pop", *words)
    log = next(finished.folders["Pop"].glob("*.log")).read_text()
    assert "save_dataloaders has no effect: rows are made anew" in log
    assert "dataset_save_path has no effect: rows are made anew" in log and "shuffle has no effect" not in log


# ----------------------------------------------------------------------------------------------------- one judge


class Echo(LLMRecommender):
    """An LLM model that answers with SASRec's scores."""

    checkpoint: Path

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        other = Config("SASRec", config["dataset"], config_dict={"data_path": str(Path(config["data_path"]).parent)})
        self.sasrec = other.model_class(other, dataset).eval()
        self.sasrec.load_state_dict(load_checkpoint(self.checkpoint)["state_dict"])

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return self.sasrec.full_sort_predict(interaction)


def test_a_stub_llm_with_sasrecs_scores_gets_bit_equal_results(side_by_side, world, saved):
    Echo.checkpoint = side_by_side.folders["SASRec"] / "model.pth"
    words = words_for("BIGRec", world, saved, "--epochs=0")[2:]  # the class stands for model and data set
    argv = [word for word in words if not word.startswith("--BIGRec.")]
    with working_in(saved.parent):
        echo = run_one(Config(Echo, "world", argv=argv))
    reference = side_by_side.result("SASRec")
    assert echo.metrics == reference.test and echo.valid_metrics == reference.valid
    with open(echo.folder / "test_ranks.csv", newline="") as file:
        assert list(csv.DictReader(file)) == side_by_side.ranks("SASRec")


def test_sampled_candidates_are_the_same_for_all_models(command, monkeypatch):
    seen: list[tuple[str, torch.Tensor]] = []
    collect = RowCollector.eval_batch_collect

    def watch(self: RowCollector, scores: torch.Tensor, *rest: Any) -> None:
        seen.append((self.config["model"], torch.isfinite(scores)))
        collect(self, scores, *rest)

    monkeypatch.setattr(RowCollector, "eval_batch_collect", watch)
    finished = command("Pop,SASRec,BIGRec", "--eval_args={mode: uni5}", "--BIGRec.epochs=0")
    evaluated = {name: [mask for model, mask in seen if model == name][-2:] for name in finished.folders}
    assert len(evaluated) == 3 and len(evaluated["Pop"]) == 2  # validation and test
    assert all(2 <= n <= 6 for n in evaluated["Pop"][1].sum(dim=1).tolist())  # five draws, which may repeat an item
    for name, masks in evaluated.items():
        assert all(torch.equal(mask, pops) for mask, pops in zip(masks, evaluated["Pop"], strict=True)), name
        assert finished.result(name).test["hit@10"] == 1.0


def test_topk_above_the_catalogue_counts_every_item(command):
    finished = command("Pop,SASRec,BIGRec", "--topk=[5,100]", "--valid_metric=NDCG@5", "--BIGRec.epochs=0")
    for label in ("Pop", "SASRec", "BIGRec"):
        ranks = [int(row["rank"]) for row in finished.ranks(label)]
        assert finished.result(label).test == pytest.approx(metrics_of(ranks, (5, 100)), abs=1e-14)
        assert finished.result(label).test["hit@100"] == 1.0
        assert all(len(row["top_items"].split()) == 20 for row in finished.ranks(label))


def test_metrics_beyond_accuracy_are_those_of_the_lists(command, world):
    metrics = "--metrics=[NDCG,ItemCoverage,AveragePopularity,GiniIndex,ShannonEntropy,TailPercentage]"
    finished = command("Pop,SASRec,BIGRec", metrics, "--BIGRec.epochs=0", "--BIGRec.train_sample_size=9")
    history: dict[str, list[str]] = {}
    lines = [line.split("\t") for line in (world / "world.inter").read_text().splitlines()[1:]]
    for user, item, *_ in sorted(lines, key=lambda line: float(line[3])):
        history.setdefault(user, []).append(item)
    popularity = Counter(item for items in history.values() for item in items[:-2])
    for label in ("Pop", "SASRec", "BIGRec"):
        shown = {item for row in finished.ranks(label) for item in row["top_items"].split()[:5]}
        assert finished.result(label).test["itemcoverage@5"] == pytest.approx(len(shown) / 20)
        popular = [popularity[item] for row in finished.ranks(label) for item in row["top_items"].split()[:5]]
        assert finished.result(label).test["averagepopularity@5"] == pytest.approx(np.mean(popular))


WITH_CLASS = "--load_col={inter: [user_id, item_id, timestamp], item: [item_id, title, class]}"


def test_the_hit_ratio_of_the_category_is_that_of_the_lists_and_changes_nothing_else(command, side_by_side, world):
    finished = command("Pop,SASRec,BIGRec", "--category_field=class", WITH_CLASS, "--BIGRec.epochs=0")
    rows = [line.split("\t") for line in (world / "world.item").read_text().splitlines()[1:]]
    categories = {item: set(words.split()) for item, *_, words in rows}
    for label in ("Pop", "SASRec", "BIGRec"):
        result = finished.result(label)
        for phase, metrics in (("test", result.test), ("valid", result.valid)):
            assert finished.json(label, "metrics.json")[phase] == metrics
            ranks = finished.ranks(label, phase)
            for k in (1, 5, 10):
                hits = [
                    any(categories[item] & categories[row["item_id"]] for item in row["top_items"].split()[:k])
                    for row in ranks
                ]
                assert metrics.pop(f"category_hit@{k}") == pytest.approx(sum(hits) / len(hits))
        if label != "BIGRec":  # which has two epochs there
            usual = side_by_side.result(label)
            assert (result.test, result.valid, result.best_epoch) == (usual.test, usual.valid, usual.best_epoch)


def test_categories_that_are_not_loaded_are_left_out_and_those_that_are_not_there_refused(command, capsys):
    finished = command("Pop", "--category_field=class", "--load_col={inter: [user_id, item_id, timestamp]}")
    assert not any(name.startswith("category_hit") for name in finished.result("Pop").test)
    assert "category_hit is left out: load_col does not load the item field 'class'" in finished.log("Pop")
    finished = command("Pop", "--category_field=clas", WITH_CLASS)
    assert finished.status == 2 and not finished.folders
    assert "category_field: data set 'world' has no item field 'clas'" in capsys.readouterr().err


def test_models_that_would_be_judged_on_other_rows_are_refused_before_they_train(command, capsys):
    finished = command("Pop,SASRec", "--SASRec.test_sample_size=3")
    assert finished.status == 2 and finished.results is None
    assert "SASRec would be evaluated on other rows than Pop" in capsys.readouterr().err
    assert not finished.folders


# ------------------------------------------------------------------------------------------------------- few shot


def test_sasrec_is_shown_on_all_rows_and_on_the_llms_few_shot_rows(command):
    sizes = ("--train_sample_size=16", "--valid_sample_size=6", "--test_sample_size=7", "--BIGRec.epochs=0")
    finished = command("Pop,SASRec,BIGRec", *sizes)
    lines = [(result.model, result.train_rows, result.n_rows) for result in finished.table.results]
    assert lines == [("Pop", 75, 7), ("SASRec", 63, 7), ("SASRec (16 rows)", 16, 7), ("BIGRec", 16, 7)]
    labels = ("Pop", "SASRec", "SASRec--16-rows-", "BIGRec")
    assert len({tuple(pairs_of(finished, label)) for label in labels}) == 1


@pytest.mark.parametrize(("sample_for", "rows"), [("llm", 63), pytest.param("all", 16, marks=pytest.mark.slow)])
def test_sample_for_llm_or_all_shows_sasrec_once(command, sample_for, rows):
    sizes = ("--BIGRec.train_sample_size=16", f"--sample_for={sample_for}", "--BIGRec.epochs=0")
    finished = command("SASRec,BIGRec", *sizes)
    assert [(result.model, result.train_rows) for result in finished.table.results] == [
        ("SASRec", rows),
        ("BIGRec", 16),
    ]


# --------------------------------------------------------------------------------------------- what runs share


def test_the_same_command_again_computes_nothing_says_so_and_gives_the_same(side_by_side, command):
    again = command("Pop,SASRec,BIGRec")
    for label in ("Pop", "SASRec", "BIGRec"):
        first, second = side_by_side.result(label), again.result(label)
        assert (first.test, first.valid, first.best_epoch) == (second.test, second.valid, second.best_epoch)
        assert side_by_side.ranks(label) == again.ranks(label)
    assert again.json("BIGRec", "stages.json") == side_by_side.json("BIGRec", "stages.json")
    assert again.json("BIGRec", "history.json") == side_by_side.json("BIGRec", "history.json")
    note = "Wall time excludes stages reused from an earlier run: tiny-llm, item-embeddings, fine-tune, answers"
    assert note in again.result("BIGRec").notes
    assert not any("fine-tune" in word for word in side_by_side.result("BIGRec").notes)
    assert "epoch 1 training" in side_by_side.log("BIGRec") and "epoch 1 training" not in again.log("BIGRec")


@pytest.mark.parametrize(
    ("word", "shared"),
    [
        ("--test_sample_size=5", True),
        ("--topk=[10,15]", True),
        pytest.param("--micro_batch_tokens=512", True, marks=pytest.mark.slow),
        pytest.param("--generation_batch_tokens=512", True, marks=pytest.mark.slow),
        ("--faiss_index=HNSW8", False),
        ("--seed=7", False),
        ("--BIGRec.learning_rate=0.01", False),
        ("--valid_sample_size=5", False),
        pytest.param("--num_beams=1", False, marks=pytest.mark.slow),
        ("--eval_args={mode: {valid: uni5, test: full}}", False),
        ("--lora_r=2", False),
        pytest.param("--llm_dtype=bfloat16", False, marks=pytest.mark.slow),
        pytest.param("--max_prompt_tokens=300", False, marks=pytest.mark.slow),
    ],
)
def test_fine_tuning_is_shared_by_runs_that_differ_only_in_something_later(
    side_by_side, command, monkeypatch, word, shared
):
    class Stop(Exception):
        pass

    def stop(*_: Any, **options: Any) -> None:
        raise Stop

    # Whether training would begin is all that is asked.
    monkeypatch.setattr("recbole_llm.trainer.tuning_stages.FineTuning", stop)
    if shared:
        finished = command("BIGRec", word)
        assert finished.json("BIGRec", "stages.json") == side_by_side.json("BIGRec", "stages.json")
    else:
        with pytest.raises(Stop):
            command("BIGRec", word)


@pytest.mark.parametrize("stage", [pytest.param("tiny-llm", marks=pytest.mark.slow), "item-embeddings"])
def test_a_corrupt_cache_is_rebuilt_and_said_so(side_by_side, command, stage):
    place = side_by_side.stage("BIGRec", stage)
    victim = max(place.glob("*.*"), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    again = command("BIGRec")
    assert f"Stage {stage}: {place} is damaged ({victim.name} has changed); rebuilding it" in again.log("BIGRec")
    assert victim.read_bytes() == whole
    assert again.ranks("BIGRec") == side_by_side.ranks("BIGRec")
    assert again.result("BIGRec").test == side_by_side.result("BIGRec").test


def test_without_epochs_the_untuned_llm_is_ranked(command, llama):
    untuned = command("BIGRec", "--epochs=0", f"--llm_path={llama}")
    result = untuned.result("BIGRec")
    assert (result.epochs, result.best_epoch) == (0, 0)
    assert set(untuned.json("BIGRec", "stages.json")) == {"item-embeddings"}
    assert not (untuned.folders["BIGRec"] / "adapter").exists()
    other_adapter = command("BIGRec", "--epochs=0", f"--llm_path={llama}", "--adapter=full")
    assert other_adapter.ranks("BIGRec") == untuned.ranks("BIGRec")
    tuned = command("BIGRec", "--epochs=1", f"--llm_path={llama}", "--train_sample_size=20")
    assert tuned.ranks("BIGRec") != untuned.ranks("BIGRec")


def test_reweighting_leaves_its_gammas_and_says_which_stages_it_used(command):
    finished = command("BIGRec", "--epochs=0", "--reweight=collaborative", "--recommender_config={epochs: 1}")
    assert finished.json("BIGRec", "gammas.json").keys() == finished.result("BIGRec").test.keys()
    assert set(finished.json("BIGRec", "stages.json")) == {"tiny-llm", "item-embeddings", "auxiliary-SASRec"}


# ------------------------------------------------------------------------------------------------ titles and items


@pytest.fixture(scope="module")
def gaps(tmp_path_factory) -> Path:
    """The world with two items without a title and two that share one."""
    folder = make_world(tmp_path_factory.mktemp("data") / "gaps", n_users=12, n_items=20)
    lines = (folder / "gaps.item").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    by_id = {row[0]: row for row in cells}
    untitled, shared = _special_items(folder)
    for item in untitled:
        by_id[item][1] = ""
    for item in shared:
        by_id[item][1] = "Twins"
    (folder / "gaps.item").write_text("\n".join("\t".join(row) for row in cells) + "\n")
    return folder


def _special_items(folder: Path) -> tuple[set[str], set[str]]:
    """Two items that are test targets, and two others that are."""
    targets = list(dict.fromkeys(items[-1] for items in histories_in(folder).values()))
    return set(targets[:2]), set(targets[2:4])


def test_untitled_items_cost_their_rows_and_nothing_else(command, gaps, tmp_path):
    untitled, shared = _special_items(gaps)
    finished = command(
        "Pop,BIGRec", "--epochs=1", "--topk=20", "--valid_metric=NDCG@20", world=gaps, saved=tmp_path / "saved"
    )
    skipped = sum(item in untitled for items in histories_in(gaps).values() for item in items[1:-2])
    skipped += sum(items[0] in untitled and items[1] not in untitled for items in histories_in(gaps).values())
    log = finished.log("BIGRec")
    assert "2 of 20 items have no title" in log and f"{skipped} training rows have no titled history or target" in log
    for row in finished.ranks("BIGRec"):
        assert (row["rank"] == "") == (row["item_id"] in untitled)
        assert not untitled & set(row["top_items"].split())
    assert all(row["rank"] for row in finished.ranks("Pop"))  # only the LLM cannot name them
    assert pairs_of(finished, "Pop") == pairs_of(finished, "BIGRec")
    places = [[row["top_items"].split().index(item) for item in shared] for row in finished.ranks("BIGRec")]
    assert all(abs(first - second) == 1 for first, second in places)  # items of one title tie and stand together


# ------------------------------------------------------------------------------------------- LLMs and third parties


@pytest.mark.parametrize("family", ["gpt2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_other_families_run_from_a_folder(command, tmp_path, family):
    folder = save_family(family, tmp_path / family)
    sizes = ("--train_sample_size=6", "--valid_sample_size=3", "--test_sample_size=4", "--epochs=1")
    finished = command("BIGRec", f"--llm_path={folder}", *sizes, saved=tmp_path / "saved")
    assert finished.status == 0 and len(finished.ranks("BIGRec")) == 4
    assert not any("tiny LLM" in note for note in finished.result("BIGRec").notes)
    adapter = json.loads((finished.folders["BIGRec"] / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(folder)
    if family == "gpt2":  # 512 learned positions, of which ten new tokens, or the longest title, take the last
        told = re.search(r"Prompts are cut to (\d+) tokens: the LLM has 512 positions", finished.log("BIGRec"))
        assert told and 400 < int(told[1]) <= 502


def test_a_third_partys_model_runs_by_its_entry_point(command, tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "contrary-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: contrary\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recbole_llm.models]\nContrary = contrary:Contrary\n")
    (site / "contrary.py").write_text(
        textwrap.dedent(
            """
            import torch
            from recbole_llm.model.bigrec import BIGRec

            class Contrary(BIGRec):
                def full_sort_predict(self, interaction):
                    scores = super().full_sort_predict(interaction)
                    return torch.where(scores.isfinite(), -scores, scores)
            """
        )
    )
    (site / "Contrary.yaml").write_text("num_beams: 1  # (int) Its own default.\n")
    monkeypatch.syspath_prepend(str(site))
    finished = command("Contrary,BIGRec", "--epochs=0", "--num_beams=1")
    assert finished.status == 0
    for contrary, usual in zip(finished.ranks("Contrary"), finished.ranks("BIGRec"), strict=True):
        assert int(contrary["rank"]) == 21 - int(usual["rank"])


def test_help_prints_how_it_is_used(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: recbole-llm --model=" in shown and all(f"recbole-llm {verb} " in shown for verb in VERBS)


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{recbole_llm.__version__}\n"
