"""Coresets through the command: who is chosen, what is trained on, what is shared, and what a wrong setting says."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recbole_llm.data.rows import SAMPLE_ID, Rows, load_rows, rows_digest
from recbole_llm.registry import CORESETS
from recbole_llm.selection.llm_inputs import LLMInputs
from recbole_llm.selection.selection_file import read_selection
from recbole_llm.settings.config import Config
from tests.encoders import save_encoder
from tests.pictures import drawn
from tests.runs import Finished

SELECTORS = [name for name in CORESETS if name != "none"]
# They read what el2n, dealrec or goracs read, or are chosen with below.
LIKE_OTHERS = ("ccs", "k_center", "herding", "moderate", "grand", "tf_dcon", "d2_pruning")
NOT_OF_RECOMMENDER = ("random", "dsir", "goracs")
SEARCHES = ("goracs", "fdmat")  # they tell how they went, and draw a map
N_ROWS, SIZE = 24, 6
ERROR = "recbole-llm: error: "


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of the tests that may share stages."""
    return tmp_path_factory.mktemp("coresets") / "saved"


@pytest.fixture(scope="module")
def words(llama: Path) -> tuple[str, ...]:
    """One epoch on few rows of an LLM with random weights."""
    return (
        f"--llm_path={llama}",
        "--recommender_config={hidden_size: 16, inner_size: 16, epochs: 2}",
        f"--train_sample_size={N_ROWS}",
        "--valid_sample_size=4",
        "--test_sample_size=4",
        "--num_beams=1",
        "--max_new_tokens=4",
        "--epochs=1",
        "--lr_scheduler=constant",  # presets have regimes of their own
        "--stopping_step=2",
    )


@pytest.fixture(scope="module")
def coreset(command: Any, stages: Path, words: tuple[str, ...]) -> Callable[..., Finished]:
    """``coreset("--coreset=el2n")``: BIGRec, or other ``models``, on ``SIZE`` rows."""

    def run(*more: str, models: str = "BIGRec", saved: Path = stages, status: int = 0) -> Finished:
        finished = command(models, *words, f"--coreset_size={SIZE}", *more, saved=saved)
        assert finished.status == status
        return finished

    return run


@pytest.fixture(scope="module")
def fails(coreset: Callable[..., Finished]) -> Callable[..., str]:
    """Run a command that must fail, and give its error without the program's name."""

    def run(capsys: pytest.CaptureFixture[str], *more: str, models: str = "BIGRec") -> str:
        capsys.readouterr()
        assert coreset(*more, models=models, status=2).results is None
        lines = capsys.readouterr().err.rstrip("\n").split("\n")
        assert [line.startswith(ERROR) for line in lines].count(True) == 1 and lines[-1].startswith(ERROR)
        return lines[-1].removeprefix(ERROR)

    return run


@pytest.fixture(scope="module")
def rows(world: Path, words: tuple[str, ...]) -> Rows:
    """The rows of the commands of this module."""
    settings = {"data_path": str(world.parent), "train_sample_size": N_ROWS, "valid_sample_size": 4}
    return load_rows(Config("BIGRec", world.name, config_dict=settings), few_shot=True)


@pytest.fixture(scope="module")
def dealrec(coreset: Callable[..., Finished]) -> Finished:
    """The usual run of this module."""
    return coreset(models="DEALRec")


def lines_of(finished: Finished, label: str = "BIGRec") -> list[dict[str, str]]:
    with open(finished.folders[label] / "coreset.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chosen_by(finished: Finished, label: str = "BIGRec") -> list[int]:
    return [int(line[SAMPLE_ID]) for line in lines_of(finished, label) if line["selected"] == "1"]


def test_what_a_broken_selection_has_found_of_rows_is_not_computed_again(coreset, dealrec, tmp_path, monkeypatch):
    asked: list[list[int]] = []
    losses = LLMInputs._answer_losses

    def run(dies_at: int) -> Finished:
        def losses_or_die(self: LLMInputs, batch: list[int]) -> torch.Tensor:
            if len(asked) == dies_at:
                raise KeyboardInterrupt
            asked.append(list(batch))
            return losses(self, batch)

        asked.clear()
        monkeypatch.setattr(LLMInputs, "_answer_losses", losses_or_die)
        return coreset("--micro_batch_tokens=200", models="DEALRec", saved=tmp_path / "saved")

    with pytest.raises(KeyboardInterrupt):
        run(dies_at=2)
    before = {row for batch in asked for row in batch}
    finished = run(dies_at=99)
    after = {row for batch in asked for row in batch}
    assert before and after and not before & after and before | after == set(range(N_ROWS))
    assert chosen_by(finished, "DEALRec") == chosen_by(dealrec, "DEALRec")


def adapter_of(finished: Finished, label: str) -> dict[str, torch.Tensor]:
    return load_file(finished.folders[label] / "adapter" / "adapter_model.safetensors")


def check_equal_runs(one: Finished, other: Finished, label: str, other_label: str) -> None:
    for name, weight in adapter_of(one, label).items():
        assert torch.equal(weight, adapter_of(other, other_label)[name])
    assert one.result(label).test == other.result(other_label).test
    assert one.ranks(label) == other.ranks(other_label)


# ---------------------------------------------------------------------------------------------------- every selector


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else []) for name in SELECTORS]
)
def test_the_rows_that_a_selector_chooses_are_the_rows_trained_on(coreset, rows, name):
    finished = coreset(f"--coreset={name}")
    lines, summary = lines_of(finished), finished.json("BIGRec", "coreset.json")
    assert len(lines) == N_ROWS and sum(line["selected"] == "1" for line in lines) == SIZE
    assert [int(line[SAMPLE_ID]) for line in lines] == rows.train.inter_feat[SAMPLE_ID].tolist()
    places = read_selection(finished.folders["BIGRec"] / "coreset.csv", rows.train)
    chosen = rows.train.copy(rows.train.inter_feat[torch.from_numpy(places)])
    facts = json.loads((finished.stage("BIGRec", "fine-tune") / "stage.json").read_text())["facts"]
    assert facts["rows"] == rows_digest(chosen)
    assert finished.result("BIGRec").train_rows == SIZE == summary["selected"]
    assert f"coreset={name}" in finished.result("BIGRec").point
    assert (summary["coreset"], summary["pool"], summary["seed"]) == (name, N_ROWS, 2020)
    assert {"selection", *(["SASRec"] if name not in NOT_OF_RECOMMENDER else [])} <= set(summary["seconds"])
    assert summary["peak_mib"] > 1
    assert f"coreset {name}: {SIZE} rows selected in " in finished.log("BIGRec")
    assert "s per 1,000 rows" in finished.log("BIGRec")
    for picture in ("coreset", *([name] if name in SEARCHES else [])):
        with Image.open(finished.folders["BIGRec"] / f"{picture}.png") as image:
            assert image.size == (1320, 540)
    assert ("outcome" in summary) == (name in SEARCHES) == ("GORACS, exact: " in finished.log("BIGRec"))


def test_dealrec_is_bigrec_with_its_coreset(coreset, dealrec):
    other = coreset("--coreset=dealrec", models="BIGRec")
    assert other.json("BIGRec", "stages.json") == dealrec.json("DEALRec", "stages.json")
    assert set(other.json("BIGRec", "stages.json")) == {
        "item-embeddings", "auxiliary-SASRec", "influence", "effort", "coreset", "fine-tune",
    }  # fmt: skip
    check_equal_runs(dealrec, other, "DEALRec", "BIGRec")
    assert any("influence, effort, coreset, fine-tune" in note for note in other.result("BIGRec").notes)
    facts = dealrec.json("DEALRec", "coreset.json")
    assert {"largest_eigenvalue", "damping", "residual"} <= set(facts["influence"])
    scores = np.array([[float(line[name]) for name in ("influence", "effort", "score")] for line in lines_of(other)])
    influence, effort = ((part - part.min()) / (part.max() - part.min()) for part in scores.T[:2])
    np.testing.assert_allclose(scores[:, 2], influence + 0.5 * effort, rtol=1e-12)
    n_cut = N_ROWS // 10
    assert not set(np.argsort(-scores[:, 2])[:n_cut]) & {
        place for place, line in enumerate(lines_of(other)) if line["selected"] == "1"
    }


@pytest.mark.slow
def test_what_decides_memory_alone_changes_no_choice(coreset, dealrec, tmp_path):
    small = coreset("--micro_batch_tokens=1", "--eval_batch_size=5", models="DEALRec", saved=tmp_path / "saved")
    assert chosen_by(small, "DEALRec") == chosen_by(dealrec, "DEALRec")
    scores = [[float(line["score"]) for line in lines_of(run, "DEALRec")] for run in (small, dealrec)]
    np.testing.assert_allclose(*scores, rtol=1e-3)


# -------------------------------------------------------------------------------------------------- size, unit, pool


def test_a_share_is_a_part_of_the_rows_and_an_integer_a_count(coreset):
    half = coreset("--coreset=random", "--coreset_size=0.5")
    assert half.result("BIGRec").train_rows == N_ROWS // 2
    count = coreset("--coreset=random", f"--coreset_size={N_ROWS // 2}")
    assert count.json("BIGRec", "stages.json") == half.json("BIGRec", "stages.json")
    assert set(chosen_by(coreset("--coreset=random"))) < set(chosen_by(half))


@pytest.mark.parametrize(("size", "told"), [(1.0, True), (N_ROWS, True), (N_ROWS - 1, False)])
def test_a_selection_that_leaves_no_row_out_is_told_of(coreset, size, told):
    finished = coreset("--coreset=random", f"--coreset_size={size}")
    assert (f"coreset random: all {N_ROWS} rows are chosen" in finished.log("BIGRec")) is told


def test_a_user_stands_for_the_last_training_row(coreset, rows):
    finished = coreset("--coreset=random", "--coreset_unit=user", "--coreset_size=1.0", "--train_sample_size=~")
    settings = {"data_path": str(rows.whole.config["data_path"])}
    train = load_rows(Config("BIGRec", rows.whole.dataset_name, config_dict=settings), few_shot=True).train.inter_feat
    last: dict[int, int] = {}
    for user, length, sample_id in zip(
        *(train[name].tolist() for name in ("user_id", "item_length", SAMPLE_ID)), strict=True
    ):
        last[user] = max(last.get(user, (0, 0)), (length, sample_id))
    assert chosen_by(finished) == sorted(sample_id for _, sample_id in last.values())
    assert finished.result("BIGRec").train_rows == len(last)


def test_a_pool_is_looked_at_and_nothing_else(coreset):
    finished = coreset("--coreset=el2n", "--coreset_pool=10")
    assert len(lines_of(finished)) == 10
    scores = {int(line[SAMPLE_ID]): float(line["score"]) for line in lines_of(finished)}
    assert chosen_by(finished) == sorted(sorted(scores, key=lambda row: -scores[row])[:SIZE])


# -------------------------------------------------------------------------------------------------------------- file


def test_a_file_given_back_is_the_same_run(coreset, dealrec):
    file = dealrec.folders["DEALRec"] / "coreset.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as spreadsheets mark UTF-8
    again = coreset(f"--coreset_file={file}")
    check_equal_runs(dealrec, again, "DEALRec", "BIGRec")
    assert again.result("BIGRec").train_rows == SIZE
    stages = again.json("BIGRec", "stages.json")
    assert stages["fine-tune"] == dealrec.json("DEALRec", "stages.json")["fine-tune"] and "coreset" not in stages


def test_a_file_of_another_sample_is_refused(fails, dealrec, capsys):
    file = dealrec.folders["DEALRec"] / "coreset.csv"
    message = fails(capsys, f"--coreset_file={file}", "--seed=1")
    assert message.startswith(f"coreset_file: {file} selects row ")
    assert "which is no row of this run; use the data, the split and the train_sample_size" in message


# ---------------------------------------------------------------------------------------------------- other models


@pytest.mark.slow
def test_soft_learns_its_own_answers_to_the_chosen_rows(coreset, dealrec):
    finished = coreset("--coreset=dealrec", "--distance_rows=4", models="SOFT")
    stages, own = finished.json("SOFT", "stages.json"), dealrec.json("DEALRec", "stages.json")
    assert all(stages[name] == own[name] for name in ("influence", "effort", "coreset", "fine-tune"))
    assert finished.json("SOFT", "distilled.json")["rows"] == SIZE


@pytest.mark.parametrize("adapter", [pytest.param("lora", marks=pytest.mark.slow), "ilora"])
def test_dealrec_chooses_for_hybrid_prompts_and_instance_wise_adapters(coreset, dealrec, adapter):
    finished = coreset("--llm_recommender=LLaRA", f"--adapter={adapter}", "--lora_r=8", models="DEALRec")
    stages, own = finished.json("DEALRec", "stages.json"), dealrec.json("DEALRec", "stages.json")
    assert stages["influence"] == own["influence"]  # that of the recommender, which is the same
    assert stages["effort"] != own["effort"]
    assert finished.result("DEALRec").train_rows == SIZE
    for line, other in zip(lines_of(finished, "DEALRec"), lines_of(dealrec, "DEALRec"), strict=True):
        assert line["influence"] == other["influence"] and line["effort"] != other["effort"]


def test_influence_on_validation_rows_is_another_one(coreset, dealrec):
    finished = coreset("--influence_target=valid", models="DEALRec")
    stages, own = finished.json("DEALRec", "stages.json"), dealrec.json("DEALRec", "stages.json")
    assert stages["influence"] != own["influence"] and stages["effort"] == own["effort"]


def test_the_selection_of_the_public_code_can_be_had(coreset, words):
    own = next(word for word in words if word.startswith("--recommender_config"))
    finished = coreset("--config_files=paper/dealrec-reference.yaml", "--influence_steps=30", own, models="DEALRec")
    facts = finished.json("DEALRec", "coreset.json")
    assert (facts["unit"], facts["n_groups"], facts["hard_prune_ratio"], facts["weight"]) == ("user", 25, 0.1, 0.5)
    assert facts["influence"]["damping"] == 0.01 * 25 > 100 * facts["influence"]["largest_eigenvalue"]
    assert facts["influence"]["steps"] == 30 and facts["influence"]["residual"] is None
    assert facts["selected"] == finished.result("DEALRec").train_rows == SIZE


def test_goracs_is_bigrec_with_its_coreset_and_tells_how_it_searched(coreset):
    with drawn("goracs.png"):
        finished = coreset(models="GORACS")
        again = coreset("--coreset=goracs", "--effort_weights=reference", models="BIGRec")
    assert set(finished.json("GORACS", "stages.json")) == {
        "item-embeddings", "embeddings", "valid-embeddings", "effort", "coreset", "fine-tune",
    }  # fmt: skip
    outcome = finished.json("GORACS", "coreset.json")["outcome"]
    assert outcome["method"] == "exact" and outcome["budgets"] == {"0": SIZE} and outcome["missed_gain"] == 0
    assert outcome["trace"] == sorted(outcome["trace"], reverse=True)
    assert outcome["trace"][-1] == pytest.approx(outcome["objective"]) and outcome["n_solves"] > 0
    assert again.json("BIGRec", "stages.json") == finished.json("GORACS", "stages.json")
    check_equal_runs(finished, again, "GORACS", "BIGRec")
    assert re.search("coreset goracs: exact search; objective .* after .* exchanges and", again.log("BIGRec"))
    pictures = [run.folders[label] / "goracs.png" for run, label in ((finished, "GORACS"), (again, "BIGRec"))]
    assert pictures[0].stat().st_size == pytest.approx(pictures[1].stat().st_size, rel=0.1)


def test_goracs_takes_another_search_and_another_encoder(coreset, tmp_path):
    usual = coreset(models="GORACS").json("GORACS", "stages.json")
    pools = coreset("--goracs_method=approximate", "--goracs_pool_size=12", models="GORACS")
    stages = pools.json("GORACS", "stages.json")
    assert {name for name, own in stages.items() if own != usual[name]} <= {"coreset", "fine-tune"}
    outcome = pools.json("GORACS", "coreset.json")["outcome"]
    assert outcome["method"] == "approximate" and outcome["n_considered"] <= N_ROWS
    encoder = save_encoder(tmp_path / "encoder", max_tokens=512)
    stages = coreset(f"--coreset_encoder={encoder}", models="GORACS").json("GORACS", "stages.json")
    assert stages["effort"] == usual["effort"]
    assert all(stages[name] != usual[name] for name in ("embeddings", "valid-embeddings", "coreset"))


@pytest.mark.parametrize(
    "settings",
    [
        ["--adapter=ilora", "--lora_r=8"],
        pytest.param(["--adapter=full", "--effort_weights=last"], marks=pytest.mark.slow),
        pytest.param(["--candidates=5"], marks=pytest.mark.slow),
    ],
)
def test_goracs_chooses_for_other_adapters_and_prompts(coreset, settings):
    model = "BIGRec" if "--adapter=full" in settings else "LLaRA"
    finished = coreset(f"--llm_recommender={model}", *settings, models="GORACS")
    assert finished.result("GORACS").train_rows == SIZE
    assert all(float(line["gradient_norms"]) > 0 for line in lines_of(finished, "GORACS"))


@pytest.fixture
def click_coreset(command, words):
    """``click_coreset("--coreset=el2n")``: TALLRec on ``SIZE`` rows."""
    own = [word for word in words if not word.startswith(("--llm_path", "--valid_sample_size", "--test_sample_size"))]
    told = ["--threshold={'rating': 4}", "--valid_metric=AUC", f"--coreset_size={SIZE}", "--llm_recommender=TALLRec"]

    def run(*settings):
        finished = command("GORACS", *own, *told, *settings)
        assert finished.status == 0 and finished.result("GORACS").train_rows == SIZE
        assert set(finished.result("GORACS").test) == {"auc", "logloss"}
        return finished

    return run


@pytest.mark.parametrize(
    "name, column, settings",
    [
        ("el2n", "el2n", []),
        pytest.param("grand", "grand", [], marks=pytest.mark.slow),
        pytest.param("ccs", "el2n", [], marks=pytest.mark.slow),
        pytest.param("d2_pruning", "el2n", [], marks=pytest.mark.slow),
        ("d2_pruning", "el2n", ["--coreset_vectors=llm"]),
    ],
)
def test_rows_are_chosen_by_how_hard_the_llm_finds_a_click(click_coreset, name, column, settings):
    finished = click_coreset(f"--coreset={name}", *settings)
    values = np.array([float(line[column]) for line in lines_of(finished, "GORACS")])
    assert (values > 0).all() and (column == "grand" or (values < 2**0.5).all())
    stages = {"el2n": "choice-errors", "grand": "gradient-norms"}
    assert stages.values() & finished.json("GORACS", "stages.json").keys() == {stages[column]}


@pytest.mark.parametrize(
    "name", ["goracs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("moderate", "fdmat")), "qdit"]
)
def test_rows_are_chosen_for_clicks(click_coreset, name):
    """Each class in the shares that it has among the validation rows, or among all rows."""
    finished = click_coreset(f"--coreset={name}")
    lines = lines_of(finished, "GORACS")
    if name == "qdit":
        assert all(float(line["quality"]) < 0 for line in lines)
        return
    chosen = np.array([line["selected"] == "1" for line in lines])
    labels = np.array([int(line["labels"]) for line in lines])
    budgets = np.bincount(labels[chosen], minlength=2)
    assert budgets.sum() == SIZE
    if name == "goracs":
        outcome = finished.json("GORACS", "coreset.json")["outcome"]
        assert outcome["budgets"] == {"0": budgets[0], "1": budgets[1]}
        assert "gradient-norms" in finished.json("GORACS", "stages.json")


# ---------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--coreset=el2m"], "coreset: 'el2m' is not allowed; give one of none, random, el2n"),
        (["--coreset=random", "--coreset_size=0"], "coreset_size: 0 is not allowed; give an integer >= 1 (a count)"),
        (["--coreset=random", "--coreset_size=-4"], "coreset_size: -4 is not allowed"),
        (
            ["--coreset=random", "--coreset_size=1.5"],
            "coreset_size: 1.5 is not allowed; give an integer >= 1 (a count)",
        ),
        (["--coreset=random", "--coreset_size=many"], "coreset_size: 'many' is not allowed"),
        (["--coreset=random", "--coreset_size=0.01"], "coreset_size: 0.01 of 24 rows is less than one; raise it"),
        (["--coreset=el2n", "--coreset_pool=0.01"], "coreset_pool: 0.01 of 24 rows is less than one; raise it"),
        (
            ["--coreset=dealrec", "--adapter=ilora", "--ilora_permuted=True", "--lora_r=4"],
            "ilora_permuted: coreset dealrec reads the LLM before training",
        ),
        (["--coreset=random", "--coreset_unit=item"], "coreset_unit: 'item' is not allowed; give one of row, user"),
        (["--coreset=dealrec", "--dealrec_hard_prune_ratio=1.0"], "dealrec_hard_prune_ratio: 1.0 is not allowed"),
        (["--coreset=dealrec", "--dealrec_hard_prune_ratio=-0.1"], "dealrec_hard_prune_ratio: -0.1 is not allowed"),
        (["--coreset=dealrec", "--dealrec_n_groups=0"], "dealrec_n_groups: 0 is not allowed; give an integer >= 1"),
        (["--coreset=dealrec", "--dealrec_weight=-1"], "dealrec_weight: -1 is not allowed; give a number >= 0"),
        (["--coreset=dealrec", "--dealrec_scaling=z"], "dealrec_scaling: 'z' is not allowed; give one of minmax, rank"),
        (["--coreset=dealrec", "--influence_damping=-1"], "influence_damping: -1 is not allowed"),
        (
            ["--coreset=dealrec", "--influence_scale=25"],
            "influence_scale: only applies to influence_method: lissa (got cg)",
        ),
        (
            ["--coreset=dealrec", "--influence_step_rows=1"],
            "influence_step_rows: only applies to influence_method: lissa (got cg); leave it out",
        ),
        (
            ["--coreset=dealrec", "--influence_method=exact", "--influence_steps=9"],
            "influence_steps: influence_method: exact takes no steps; leave it out",
        ),
        (
            ["--coreset=dealrec", "--recommender=GRU4Rec", "--recommender_config={hidden_size: 8, epochs: 1}"],
            "influence_weights: GRU4Rec has no attention block; set influence_weights: all",
        ),
        (["--coreset=el2n", "--recommender=SASRek"], "recommender: RecBole has no model named 'SASRek'"),
        (
            ["--coreset=dealrec", "--influence_damping=0", "--influence_target=valid"],
            "inverse_hvp: the Hessian plus damping 0 is not positive definite",
        ),
        (
            ["--coreset=dsir", "--eval_args={split: {LS: test_only}}", "--stopping_step=0"],
            "coreset: dsir needs validation rows, and there are none; change eval_args",
        ),
        (
            ["--coreset=goracs", "--eval_args={split: {LS: test_only}}", "--stopping_step=0"],
            "coreset: goracs needs validation rows, and there are none; change eval_args",
        ),
        (["--coreset=goracs", "--goracs_gradient_weight=-1"], "goracs_gradient_weight: -1 is not allowed"),
        (["--coreset=goracs", "--goracs_max_exchanges=-1"], "goracs_max_exchanges: -1 is not allowed"),
        (
            ["--coreset=goracs", "--goracs_n_candidates=0"],
            "goracs_n_candidates: 0 is not allowed",
        ),
        (["--coreset=goracs", "--goracs_method=fast"], "goracs_method: 'fast' is not allowed; give one of auto, exact"),
        (["--coreset=goracs", "--goracs_pool_size=0"], "goracs_pool_size: 0 is not allowed"),
        (["--coreset=goracs", "--goracs_table_gib=0"], "goracs_table_gib: 0 is not allowed; give a number > 0"),
        (["--coreset=goracs", "--goracs_start=random"], "goracs_start: 'random' is not allowed; give one of greedy"),
        (["--coreset=goracs", "--goracs_compat=paper"], "goracs_compat: 'paper' is not allowed; give one of none"),
        (
            ["--coreset=goracs", "--goracs_compat=reference", "--goracs_method=approximate"],
            "goracs_method: approximate has no counterpart in the authors' code; use exact",
        ),
        (
            ["--coreset=goracs", "--coreset_encoder=/absent/encoder"],
            "coreset_encoder: there is no folder /absent/encoder; give an existing one, a hub name, or llm",
        ),
        (
            ["--coreset=goracs", "--adapter=full", "--effort_weights=reference"],
            "effort weights: the model has no trainable ones for 'reference'; use another adapter, or all",
        ),
        (["--coreset=qdit", "--qdit_weight=1.5"], "qdit_weight: 1.5 is not allowed"),
        (["--coreset=fdmat", "--fdmat_n_targets=0"], "fdmat_n_targets: 0 is not allowed; give an integer >= 1"),
        (["--coreset_file=absent.csv"], "coreset_file: absent.csv cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_line(fails, capsys, settings, message):
    assert fails(capsys, *settings).startswith(message)


def test_a_recursion_that_diverges_names_the_scale_it_needs(fails, capsys):
    message = fails(
        capsys, "--coreset=dealrec", "--influence_method=lissa", "--influence_scale=1e-7", "--influence_damping=0.001"
    )
    assert "the recursion diverges" in message and "raise the" in message
