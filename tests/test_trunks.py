"""``train_unit: user`` through the command: the results of rows apart, and what it says, refuses and resumes."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_llm.data.rows import N_BEFORE, SAMPLE_ID, load_rows, row_histories
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.prompt.trunk import segments
from recbole_llm.quick_start import load_data_and_model
from recbole_llm.selection.trunk_rows import cut_to_trunks, trunks_of
from recbole_llm.settings.config import Config
from recbole_llm.settings.resolve import resolve
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import Finished, ranked_alike, words_for

LONGEST, OVERLAP = 4, 2


@pytest.fixture(scope="module")
def words(llama: Path) -> tuple[str, ...]:
    """An LLM with random weights, all rows, histories of which most are cut."""
    own = [f"--{model}.{word}" for model in ("BIGRec", "SOFT") for word in ("learning_rate=0.05", "train_batch_size=8")]
    sizes = ("--train_sample_size=~", "--valid_sample_size=6", "--test_sample_size=6", "--distance_rows=6")
    return (
        f"--llm_path={llama}",
        *sizes,
        *own,
        f"--MAX_ITEM_LIST_LENGTH={LONGEST}",
        f"--trunk_overlap={OVERLAP}",
        "--lr_scheduler=linear",
        "--max_new_tokens=4",
    )


@pytest.fixture
def trunk(command: Any, words: tuple[str, ...], tmp_path: Path) -> Callable[..., Finished]:
    """``trunk("--seed=1")``: BIGRec, or other ``models``, in stages of its own unless ``saved`` is given."""

    def run(*more: str, models: str = "BIGRec", saved: str = "saved") -> Finished:
        others = tuple(f"--{model}." for model in ("BIGRec", "SOFT") if model not in models.split(","))
        mine = [word for word in words if not word.startswith(others)]
        return command(models, *mine, "--train_unit=user", *more, saved=tmp_path / saved)

    return run


@pytest.fixture(scope="module")
def usual(command: Any, words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run of ``trunk()``."""
    mine = [word for word in words if not word.startswith("--SOFT.")]
    return command("BIGRec", *mine, "--train_unit=user", saved=tmp_path_factory.mktemp("usual") / "saved")


def weights_of(finished: Finished, label: str = "BIGRec") -> dict[str, torch.Tensor]:
    return load_file(finished.folders[label] / "adapter" / "adapter_model.safetensors")


def check_alike(one: Finished, other: Finished, label: str = "BIGRec") -> None:
    """Equal but for rounding: the losses of every epoch, the weights, and how they rank."""
    ours, theirs = (finished.json(label, "history.json") for finished in (one, other))
    for name in ("train_loss", "real_loss", "distilled_loss"):
        found = [[record.get(name) for record in history] for history in (ours, theirs)]
        for own, expected in zip(*found, strict=True):
            assert own == pytest.approx(expected, abs=1e-5)
    mine, its = weights_of(one, label), weights_of(other, label)
    for name, weight in its.items():
        torch.testing.assert_close(mine[name], weight, atol=2e-3, rtol=1e-2)  # Adam enlarges what is next to nothing
    assert ranked_alike(one, other, label)


# ------------------------------------------------------------------------------------------------ trunks equal rows


def test_where_no_history_is_cut_trunks_train_as_rows_do(trunk):
    """One step per epoch, so that the order of rows is no part of it; different passes."""
    whole = ("--MAX_ITEM_LIST_LENGTH=20", "--BIGRec.train_batch_size=1000")
    together = trunk(*whole, "--micro_batch_tokens=700")
    apart = trunk(*whole, "--train_unit=row")
    check_alike(together, apart)
    assert together.stage("BIGRec", "fine-tune") != apart.stage("BIGRec", "fine-tune")
    assert re.search(r"train_unit user: (\d+) targets, \1 of them with the history of rows apart\.", log_of(together))


def log_of(finished: Finished, label: str = "BIGRec") -> str:
    return finished.log(label)


@pytest.mark.parametrize("model", ["BIGRec", pytest.param("SOFT", marks=pytest.mark.slow)])
def test_segments_train_as_rows_with_the_same_histories_do(trunk, model, monkeypatch):
    """The same steps of the same cut rows, each row in a place of its own; SOFT with both targets."""
    check_segments(trunk, model, ("--curriculum=fixed:0.5",) if model == "SOFT" else (), monkeypatch)


@pytest.mark.slow
def test_segments_train_as_rows_do_where_some_rows_have_a_distilled_answer(trunk, monkeypatch):
    """The first epoch is of these rows alone."""
    check_segments(trunk, "SOFT", ("--alpha=10", "--sd_rows=20", "--curriculum_epochs=3"), monkeypatch)


def check_segments(trunk: Any, model: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    together = trunk(*more, models=model)
    line = re.search(r"train_unit user: 63 targets, .*; (\d+) see (\d) to (\d) items", log_of(together, model))
    assert int(line[1]) > 5 and int(line[2]) >= OVERLAP and int(line[3]) < LONGEST
    monkeypatch.setattr(LLMRecommender, "takes_trunks", lambda model, n_tokens: False)
    check_alike(together, trunk(*more, models=model, saved="apart"), model)


def test_an_llm_that_takes_no_trees_gets_rows_and_the_log_says_so(trunk, usual, monkeypatch):
    def planted(self: Any, n_tokens: int = 0) -> bool:
        logging.getLogger("recbole_llm.planted").warning("no trees")
        return False

    monkeypatch.setattr("recbole_llm.llm.trunks.TrunkScorer.takes_trunks", planted)
    apart = trunk(saved="apart")
    assert "no trees" in log_of(apart)
    check_alike(usual, apart)


def test_passes_of_other_sizes_change_nothing(trunk, usual):
    check_alike(trunk("--micro_batch_tokens=150"), usual)


def test_a_coreset_is_the_same_rows_and_they_alone_are_branches(trunk):
    few = ("--coreset=random", "--coreset_size=9", "--epochs=1")
    together, apart = trunk(*few), trunk(*few, "--train_unit=row", saved="apart")
    chosen = [(one.folders["BIGRec"] / "coreset.csv").read_text() for one in (together, apart)]
    assert chosen[0] == chosen[1]
    assert together.result("BIGRec").train_rows == 9 and "train_unit user: 9 targets" in log_of(together)


@pytest.mark.slow
def test_llara_trains_in_trunks(trunk, monkeypatch):
    few = ("--epochs=1", "--recommender_config={hidden_size: 16, inner_size: 16, epochs: 1}")
    together = trunk(*few, "--LLaRA.learning_rate=0.05", models="LLaRA")
    monkeypatch.setattr(LLMRecommender, "takes_trunks", lambda model, n_tokens: False)
    apart = trunk(*few, "--LLaRA.learning_rate=0.05", models="LLaRA", saved="apart")
    losses = [one.json("LLaRA", "history.json")[0]["train_loss"] for one in (together, apart)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_killed_run_goes_on_with_the_same_bits(usual, command, words, world, tmp_path):
    place = tmp_path / "killed" / "saved"
    place.mkdir(parents=True)
    more = (*(word for word in words if not word.startswith("--SOFT.")), "--train_unit=user")
    program = f"""
        import os, signal
        from recbole_llm.trainer import finetune
        from recbole_llm.trainer.checkpoint import save_state
        from recbole_llm.quick_start import main

        def save_and_die(folder, state):
            save_state(folder, state)
            os.kill(os.getpid(), signal.SIGKILL)

        finetune.save_state = save_and_die
        main({words_for("BIGRec", world, place, *more)!r})
    """
    forked_python(program, cwd=place.parent, status=-signal.SIGKILL)
    resumed = command("BIGRec", *more, saved=place)
    assert "Resuming after epoch 1." in log_of(resumed)
    mine, its = weights_of(resumed), weights_of(usual)
    assert all(torch.equal(mine[name], weight) for name, weight in its.items())
    losses = [[r["train_loss"] for r in one.json("BIGRec", "history.json")] for one in (resumed, usual)]
    assert losses[0] == losses[1] and resumed.ranks("BIGRec") == usual.ranks("BIGRec")


# ---------------------------------------------------------------------------------------------- what is left of rows


@pytest.fixture(scope="module")
def loaded(command: Any, words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BIGRec]:
    """Training rows and model of an untuned run."""
    own = [word for word in words if not word.startswith("--SOFT.")]
    finished = command("BIGRec", *own, "--epochs=0", saved=tmp_path_factory.mktemp("loaded") / "saved")
    config, model, rows = load_data_and_model(finished.folders["BIGRec"])[:3]
    return load_rows(config, few_shot=True).train, model


def test_rows_lose_their_oldest_items_and_nothing_else(loaded):
    rows, model = loaded
    cut = cut_to_trunks(model, rows, OVERLAP)
    (old, old_lengths), (new, new_lengths) = row_histories(rows), row_histories(cut)
    for before, n_before, after, n_after in zip(old, old_lengths, new, new_lengths, strict=True):
        assert after[:n_after].tolist() == before[n_before - n_after : n_before].tolist() and not after[n_after:].any()
    for name in (rows.uid_field, rows.iid_field, SAMPLE_ID, N_BEFORE):
        assert torch.equal(rows.inter_feat[name], cut.inter_feat[name])
    users, befores = rows.inter_feat[rows.uid_field].numpy(), rows.inter_feat[N_BEFORE].numpy()
    for user in np.unique(users):
        own = np.flatnonzero(users == user)
        own = own[np.argsort(befores[own])]
        starts = segments(befores[own].tolist(), LONGEST, OVERLAP)
        assert (befores[own] - new_lengths[own]).tolist() == starts
    assert (new_lengths < old_lengths).any()
    assert cut_to_trunks(model, rows, LONGEST) is rows


def test_trunks_are_segments_of_users(loaded):
    rows, model = loaded
    cut = cut_to_trunks(model, rows, OVERLAP)
    feat = cut.inter_feat
    trunks = trunks_of(model, feat, model.histories(feat))
    users = feat[cut.uid_field].numpy()
    starts = (feat[N_BEFORE] - feat[cut.item_list_length_field]).numpy()
    assert len(trunks) == len(set(zip(users.tolist(), starts.tolist(), strict=True)))
    for own in trunks.rows:
        assert len({(users[row], starts[row]) for row in own}) == 1
        assert (np.diff(feat[N_BEFORE].numpy()[own]) > 0).all()


# -------------------------------------------------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("iLoRA", {}, "adapter ilora has other weights for every row"),
        ("TALLRec", {}, "TALLRec lists liked and disliked titles apart"),
        ("BIGRec", {"group_by_length": True}, "group_by_length puts rows of one length into a step"),
    ],
)
def test_what_shares_no_trunk_is_refused_in_one_line(model, settings, message):
    with refused("train_unit", "conflict", f"^train_unit: {message}.*; set train_unit: row$"):
        resolve(model, "ml-100k", {"train_unit": "user", **settings})
    assert resolve(model, "ml-100k", {"train_sample_size": None, **settings})["train_unit"] == "row"


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({"train_sample_size": None}, "user"),
        ({"train_sample_size": None, "train_unit": "row"}, "row"),
        ({"train_sample_size": None, "coreset": "random"}, "row"),
        ({"train_sample_size": None, "llm_path": "some/model"}, "row"),
        ({"train_sample_size": 64}, "row"),
        ({"train_sample_size": 64, "train_unit": "user"}, "user"),
    ],
)
def test_the_tiny_llm_on_all_rows_has_trunks_by_default(settings, unit):
    assert resolve("BIGRec", "ml-100k", settings)["train_unit"] == unit


def test_a_wrong_unit_is_refused():
    with refused("train_unit", "value", "train_unit: 'users' is not allowed; give one of row, user"):
        Config(model="BIGRec", dataset="ml-100k", config_dict={"train_unit": "users"})
