"""``distill_into`` through the command: a second row, a folder of RecBole's own, the stage that it goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import recbole_llm
from recbole_llm.classic import epochs
from recbole_llm.grounding import rank_scores
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.trainer import teaching
from tests.processes import forked_python
from tests.runs import Finished
from tests.worlds import ring_world

STUDENT = "SASRec from BIGRec"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teaching") / "saved"


@pytest.fixture(scope="module")
def go(command: Any, llama: Path, shared: Path) -> Any:
    def go(*more: str, models: str = "BIGRec", saved: Path = shared) -> Finished:
        words = (f"--BIGRec.llm_path={llama}", "--epochs=1", "--BIGRec.distill_into=SASRec")
        done = command(models, *words, "--BIGRec.distill_config={epochs: 2}", "--distill_topk=5", *more, saved=saved)
        assert done.status == 0
        return done

    return go


@pytest.fixture(scope="module")
def table(go: Any) -> Finished:
    return go(models="SASRec,BIGRec")


def student_of(table: Finished) -> Path:
    folder = table.folders["BIGRec"]
    return folder.parent / json.loads((folder / "student.json").read_text())["folder"]


def test_a_run_leaves_a_second_row_that_is_evaluated_on_the_same_rows(table):
    labels = [result.model for result in table.table.results]
    assert labels == ["SASRec", "BIGRec", STUDENT]
    taught, alone = table.result(STUDENT), table.result("SASRec")
    assert taught.n_rows == alone.n_rows and taught.epochs == 2
    assert any("5 best items of" in note for note in taught.notes)
    facts = [json.loads((folder / "run.json").read_text()) for folder in (student_of(table), table.folders["BIGRec"])]
    assert facts[0]["rows"] == facts[1]["rows"]


def test_the_lists_are_the_rankings_of_the_run(table):
    folder = table.stage("BIGRec", "fine-tune").parent
    (stage,) = folder.glob("teacher-rankings-*")
    ids, items = np.load(stage / "sample_ids.npy"), np.load(stage / "items.npy")
    assert items.shape == (len(ids), 5) and (items > 0).all() and len(set(ids.tolist())) == len(ids)
    run = recbole_llm.load_run(table.folders["BIGRec"])
    rows = run._asked().rows.train.inter_feat
    order = {int(number): row for row, number in enumerate(rows["sample_id"].tolist())}
    chosen = ids[:4]
    asked = rows[[order[int(number)] for number in chosen]]
    assert np.array_equal(run.model.rank(asked.to(run.model.device), 5).top_items, items[:4])


def test_lists_that_are_weighted_by_a_recommender_of_users_have_the_gamma_that_was_found(go, tmp_path):
    words = ("--reweight=collaborative", "--recommender=BPR", "--recommender_config={epochs: 2}", "--epochs=0")
    done = go(*(f"--BIGRec.{word.removeprefix('--')}" for word in words), "--distill_rows=10", saved=tmp_path / "saved")
    (stage,) = (tmp_path / "saved" / "stages").glob("teacher-rankings-*")
    facts = json.loads((stage / "stage.json").read_text())["facts"]
    assert facts["gamma"] == done.json("BIGRec", "gammas.json")["ndcg@10"]
    assert facts["answering"].keys() >= {"faiss_index", "faiss_search"} and len(np.load(stage / "items.npy")) == 10


def test_its_folder_is_one_of_recboles_and_serves_in_a_new_process(table):
    run = recbole_llm.load_run(table.folders["BIGRec"]).student
    assert run is not None and run.result.model == STUDENT and run.config["model"] == "SASRec"
    assert type(run.model).__name__ == "SASRec" and type(run.model).__module__.startswith("recbole.")
    mine = run.recommend(users=run.users[:3], k=3)[["user_id", "item_id"]].to_csv(index=False)
    printed = forked_python(
        """
        import sys
        import recbole_llm
        run = recbole_llm.load_run(sys.argv[1])
        print(run.recommend(users=run.users[:3], k=3)[["user_id", "item_id"]].to_csv(index=False))
        """,
        run.folder,
        cwd=run.folder.parent.parent,
    ).stdout
    assert printed.strip().endswith(mine.strip())


def test_its_data_are_taken_from_where_the_teachers_are_now(table, tmp_path):
    run = recbole_llm.load_run(table.folders["BIGRec"])
    data = Path(run.config["data_path"])
    shutil.copytree(data, tmp_path / "moved" / data.name)
    again = recbole_llm.load_run(table.folders["BIGRec"], data_path=tmp_path / "moved" / data.name)
    assert again.student.config["data_path"] == again.config["data_path"] != run.config["data_path"]
    assert again.student.recommend(users=run.users[:2], k=3).equals(run.student.recommend(users=run.users[:2], k=3))


@pytest.mark.slow
def test_a_killed_teacher_goes_on_and_the_student_is_the_same(go, table, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "CHUNK", 16)
    rank, calls = BIGRec.rank, []

    def fail(self: Any, rows: Any, k: int, targets: Any = None) -> Any:
        calls.append(len(rows)) if len(rows) == teaching.CHUNK else None  # the ten rows of the report are fewer
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rank(self, rows, k, targets)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BIGRec, "rank", fail)
        go(saved=tmp_path / "saved")
    (file,) = (tmp_path / "saved" / "stages").glob("teacher-rankings-*.partial/unfinished/rankings-*")
    assert file.read_text().count("\n") == 2
    again = go(saved=tmp_path / "saved")
    theirs, mine = (student_of(one) / "test_ranks.csv" for one in (again, table))
    assert theirs.read_text() == mine.read_text()


@pytest.mark.slow
def test_a_killed_student_goes_on_after_its_last_epoch(go, table, monkeypatch):
    """The stages of its teacher are there, so that it alone takes steps; other lists begin anew."""
    monkeypatch.setattr(epochs, "SAVE_SECONDS", 0)
    steps = [0]

    def taught(dies_at: int = 0, weight: float = 0.3) -> Any:
        steps[0] = 0

        def stepped(*_: Any) -> None:
            steps[0] += 1
            if steps[0] == dies_at:
                raise KeyboardInterrupt

        hook = register_optimizer_step_post_hook(stepped)
        try:
            return student_of(go(f"--distill_weight={weight}")) / "test_ranks.csv"
        finally:
            hook.remove()

    expected, total = taught().read_bytes(), steps[0]
    with pytest.raises(KeyboardInterrupt):
        taught(dies_at=total // 2 + 1)  # in the second epoch of two
    other = taught(weight=0.6)
    assert steps[0] == total and other.read_bytes() != expected
    assert taught().read_bytes() == expected and steps[0] == total // 2


def test_few_rows_and_a_run_by_the_function(go, table, world, llama, shared):
    few = go("--distill_rows=10")
    assert any("of 10 rows" in note for note in few.result(STUDENT).notes)
    settings = json.loads(json.dumps({"distill_into": "SASRec", "distill_config": {"epochs": 1}, "distill_rows": 4}))
    run = recbole_llm.run(
        *("BIGRec", world.name),
        **{"data_path": str(world.parent), "checkpoint_dir": str(shared), "llm_path": str(llama), **settings},
        **{"epochs": 0, "max_new_tokens": 4, "num_beams": 1, "show_progress": False, "prompt_style": "plain"},
    )
    assert run.student is not None and run.student.result.epochs == 1


@pytest.mark.slow
def test_what_a_teacher_knows_reaches_a_student_whose_rows_are_few(command, llama, tmp_path, monkeypatch):
    """The teacher ranks by the true rule, which four rows for each item show badly: what is handed on is the lists."""
    planted = ring_world(tmp_path / "data" / "taught")

    def rank(self: Any, rows: Any, k: int, targets: Any = None) -> Any:
        """The items of the category after the last item's, in any order."""
        kinds = torch.tensor([-1, *(int(token[1:]) // 40 for token in self.catalog.tokens[1:])])
        last = torch.tensor([history[-1] for history in self.histories(rows)])
        table = (kinds[None] == (kinds[last][:, None] + 1) % 12).double()
        table[:, 0] = -torch.inf
        return rank_scores(table, self._targets(rows, targets), k)

    monkeypatch.setattr(BIGRec, "rank", rank)
    sizes = "hidden_size: 32, inner_size: 64, n_layers: 1, n_heads: 2, learning_rate: 0.003, train_batch_size: 128"
    words = [f"--SASRec.{pair.replace(': ', '=')}" for pair in sizes.split(", ")]
    done = command(
        *("SASRec,BIGRec", *words, "--SASRec.epochs=15", "--SASRec.stopping_step=4", f"--BIGRec.llm_path={llama}"),
        *("--BIGRec.epochs=0", "--topk=[40]", "--valid_metric=Hit@40", "--metrics=[Hit,NDCG]"),
        *("--BIGRec.distill_into=SASRec", f"--BIGRec.distill_config={{epochs: 15, stopping_step: 4, {sizes}}}"),
        "--distill_topk=40",
        saved=tmp_path / "saved",
        world=planted,
    )
    assert done.status == 0
    found = {label: done.result(label).test["hit@40"] for label in ("SASRec", "BIGRec", STUDENT)}
    assert found["BIGRec"] == 1.0 and found[STUDENT] > found["SASRec"] + 0.1, found
