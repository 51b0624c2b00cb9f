"""Several models side by side from Python: one row per model and seed, and nothing trains before all is checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import recbole_llm
from recbole_llm import ResultTable
from recbole_llm.experiment.comparison import leading_config
from recbole_llm.experiment.finished import run_fingerprint
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.runs import working_in


def test_every_model_has_a_row_for_every_seed(small, saved):
    saved.mkdir(parents=True, exist_ok=True)
    with working_in(saved.parent):
        table = recbole_llm.compare("Pop,SASRec", "world", seeds=[1, 2], **small)
        alone = recbole_llm.run("SASRec", "world", **small, seed=2)
    frame = table.to_frame()
    assert frame[["model", "seed"]].values.tolist() == [["Pop", 1], ["Pop", 2], ["SASRec", 1], ["SASRec", 2]]
    assert frame["ndcg@10"].tolist()[3] == alone.metrics["ndcg@10"]
    assert frame["valid_ndcg@10"].tolist()[3] == alone.valid_metrics["ndcg@10"]
    assert frame["ndcg@10"].tolist()[:2] == [frame["ndcg@10"][0]] * 2  # counting has no seed
    html = table._repr_html_()
    assert html.count("<tr") == 5 and "SASRec" in html and "Seed" in html


def test_the_first_llm_model_says_which_metric_leads_the_table():
    """RecBole's models have metrics of their own, which the models of a command need not share."""
    runs = [SimpleNamespace(config=SimpleNamespace(is_llm=llm, name=name)) for llm, name in ((0, "Pop"), (1, "BIGRec"))]
    assert leading_config(runs).name == leading_config(runs[::-1]).name == "BIGRec"
    assert leading_config(runs[:1]).name == "Pop"


def test_the_table_says_what_became_of_the_lines_of_the_files(small, saved, tmp_path):
    source = Path(small["data_path"]) / "world"
    world = shutil.copytree(source, tmp_path / "world")
    inter = world / "world.inter"
    header, *lines = inter.read_text().splitlines()
    missing = [line for line in lines if line.split("\t")[1] == "i1"]
    item = world / "world.item"
    item.write_text("\n".join(line for line in item.read_text().splitlines() if not line.startswith("i1\t")) + "\n")
    saved.mkdir(parents=True, exist_ok=True)
    with working_in(saved.parent):
        table = recbole_llm.compare("Pop", "world", **{**small, "data_path": str(tmp_path)}, load_col=None)
    shown = table.markdown()
    assert f"- world.inter: {len(lines):,} lines, {len(lines):,} read" in shown
    assert f"- interactions: {len(lines):,} read, {len(lines):,} kept" in shown
    assert missing and "i1" in next(line for line in table.reading if "world.item" in line and "no line" in line)
    assert ResultTable.from_json(table.json()) == table


@pytest.mark.parametrize("seeds", [[], [1, 1], 0, [1, -1], [1, 2.5], True, "many"])
def test_seeds_are_different_integers(small, seeds):
    with refused("seeds", "value", "seeds: .* is not allowed"):
        recbole_llm.compare("Pop", "world", seeds=seeds, **small)


@pytest.mark.parametrize(
    ("settings", "message", "key", "kind"),
    [
        (
            {"SASRec.test_sample_size": 3},
            "SASRec would be evaluated on other rows than Pop",
            "test_sample_size",
            "conflict",
        ),
        (
            {"SASRec.load_col": {"inter": ["user_id", "item_id", "stars"]}, "SASRec.TIME_FIELD": "stars"},
            "stars",
            "load_col",
            "data",
        ),
        ({"nosuchkey": 3}, "nosuchkey", "nosuchkey", "unknown"),
        (
            {"models": "Pop,BIGRec", "grounding": "constrained", "num_beams": 2},
            "topk: 2 constrained beams",
            "topk",
            "conflict",
        ),
        (
            {"models": "Pop,SASRec,BIGRec", "BIGRec.title_with": "colour"},
            "title_with: .* 'colour'",
            "title_with",
            "data",
        ),
    ],
)
def test_a_mistake_in_the_last_model_is_found_before_the_first_one_trains(
    small, tmp_path: Path, settings, message, key, kind
):
    own = {"models": ["Pop", "SASRec"], **small, "checkpoint_dir": str(tmp_path / "saved"), **settings}
    with working_in(tmp_path), refused(key, kind, message):
        recbole_llm.compare(dataset="world", **own)
    assert not list(tmp_path.glob("saved/Pop*"))


@pytest.mark.parametrize(
    ("model", "key", "name"),
    [
        ("BIGRec", "coreset_file", "rows.csv"),
        ("BIGRec", "domain", "recipe.yaml"),
        ("BIGRec", "llm_path", "llama/config.json"),
        ("SOLID", "semantic_encoder", "encoder/config.json"),
        ("SOLID", "semantic_encoder", "LLMEmb-world/item_vectors.npz"),
    ],
)
def test_a_run_is_of_its_rows_and_of_the_contents_of_its_files(tmp_path, model, key, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("one")
    config = Config(model, "ml-100k", argv=[f"--{key}={file.parent if '/' in name else file}"])
    before = run_fingerprint(config, model, True, "data")
    assert run_fingerprint(config, model, False, "data") != before
    file.write_text("other")
    assert run_fingerprint(config, model, True, "data") != before
