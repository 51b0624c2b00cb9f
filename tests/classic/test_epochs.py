"""RecBole's models, killed in training: the same command ends with the bits of one that was not killed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from recbole_llm.classic import epochs
from recbole_llm.classic.taught import Lessons, taught
from recbole_llm.classic.training import fit_classic
from recbole_llm.data.rows import SAMPLE_ID, Rows, load_rows
from recbole_llm.settings.config import Config
from recbole_llm.training_state import load_training
from tests.runs import words_for
from tests.worlds import make_world, side_file_settings

EPOCHS = 5
GRAPH = f"--load_col={side_file_settings('GRU4RecKG')['load_col']}".replace(", 'ent': ['ent_id', 'ent_emb']", "")
SMALL = {
    "SAR": ("--sar_warmup_epochs=2", "--hidden_size=16", "--inner_size=16"),
    "SOLID": ("--semantic_epochs=3", "--codebook_trainable=True", "--hidden_size=16", "--embedding_size=16"),
    "S3Rec": (f"--load_col={side_file_settings('S3Rec')['load_col']}", "--pretrain_epochs=3"),
    "NCL": ("--num_clusters=3", "--warm_up_step=1"),
    "KTUP": (GRAPH, "--train_rec_step=1", "--train_kg_step=1"),
    **dict.fromkeys(("CKE", "MKR", "KGCN"), (GRAPH,)),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "small", n_users=10, n_items=15)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's logs go to the working folder; a state is kept after every epoch, however short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(epochs, "SAVE_SECONDS", 0)


def build_taught(config: Config, rows: Rows) -> Any:
    """A model that learns some lists."""
    ids = np.unique(rows.train.inter_feat[SAMPLE_ID].numpy())[::2]
    items = np.random.default_rng(3).integers(1, rows.whole.item_num, (len(ids), 4))
    return taught(config.model_class)(config, rows.train, Lessons.of(ids, items, 0.5, 2.0)).to(config["device"])


class Training:
    """One command's training of a model, which may be killed after a step of an optimiser.

    Args:
        name: of the model; ``taught`` is SASRec that learns lists.
        world: the data set.
        folder: of what it leaves.
        *words: further words of the command.
    """

    def __init__(self, name: str, world: Path, folder: Path, *words: str) -> None:
        (folder / "saved").mkdir(parents=True, exist_ok=True)
        self.name, self.build = ("SASRec", build_taught) if name == "taught" else (name, None)
        own = (f"--epochs={EPOCHS}", "--eval_step=1", "--stopping_step=5", "--train_batch_size=16")
        own = (*own, *SMALL.get(name, ()), *words)
        self.words = [word for word in words_for(self.name, world, folder / "saved", *own) if "--model=" not in word]
        self.world, self.folder = world, folder
        self.steps = 0
        self.scores: list[tuple[int, float]] = []
        self.ends: dict[int, int] = {}

    def run(self, dies_at: int = 0) -> Any:
        """Train from what lies in the folder; killed after so many steps. Returns: the trainer."""
        self.steps, self.scores, self.ends = 0, [], {}

        def stepped(*_: Any) -> None:
            self.steps += 1
            if self.steps == dies_at:
                raise KeyboardInterrupt

        def told(epoch: int, score: float) -> None:
            self.scores.append((epoch, score))
            self.ends[epoch] = self.steps

        hook = register_optimizer_step_post_hook(stepped)
        try:
            config = Config(self.name, self.world.name, argv=self.words)
            rows, file = load_rows(config, False), self.folder / "m.pth"
            return fit_classic(config, rows, file, told, self.build, unfinished=self.folder / "unfinished")
        finally:
            hook.remove()

    def kill(self, dies_at: int) -> None:
        """Train, and be killed."""
        with pytest.raises(KeyboardInterrupt):
            self.run(dies_at)


def found_by(trainer: Any, training: Training) -> dict[str, Any]:
    """Everything that a training ends with."""
    return {
        "losses": trainer.train_loss_dict,
        "best": [trainer.best_valid_score, dict(trainer.best_valid_result or {}), trainer.cur_step],
        "scores": training.scores,
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
    }


# BERT4Rec masks by Python's generator, BPR draws by numpy's, LightGCN keeps what it has propagated, SGL draws graphs
# for an epoch, KTUP learns rows and graph in turns.
FAST = ("BERT4Rec", "BPR", "LightGCN", "SGL", "KTUP")
# SASRec drops out, SAR batches whole users, MultiVAE counts its steps, RecVAE has three optimisers, NCL clusters before
# an epoch, SOLID takes a codebook from a stage, others learn from a graph, S3Rec in two stages.
SLOW = ("taught", "SAR", "MultiVAE", "RecVAE", "NCL", "SOLID", "CKE", "MKR", "KGCN", "S3Rec")


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_killed_in_its_epochs_it_ends_as_if_nothing_had_been(name, world, tmp_path):
    whole, killed = (Training(name, world, tmp_path / kind) for kind in ("whole", "killed"))
    expected, total, ends = found_by(whole.run(), whole), whole.steps, whole.ends
    losses = expected["losses"]
    assert list(ends) == [1, 2, 3, 4, 5] and len(set(losses.values())) == len(losses) == EPOCHS
    killed.kill(ends[1] + 1)
    killed.kill(ends[3] - ends[1] + 1)
    assert killed.ends == {1: 0, 2: ends[2] - ends[1], 3: ends[3] - ends[1]}
    trainer = killed.run()
    assert killed.steps == total - ends[3] and killed.ends[3] == 0
    assert found_by(trainer, killed) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S3Rec", "SOLID"])
def test_what_comes_before_the_epochs_goes_on_as_well(name, world, tmp_path):
    """S3Rec's first stage, SOLID's model of classes: three epochs of as many steps each, told of nowhere."""
    whole, killed = (Training(name, world, tmp_path / kind) for kind in ("whole", "killed"))
    expected, ends = found_by(whole.run(), whole), whole.ends
    before = ends[1] - (ends[2] - ends[1])
    assert before % 3 == 0 and before > 0
    killed.kill(before // 3 + 1)  # in the second epoch, which begins anew
    killed.kill(before // 3 * 2 + 1)  # in the first one of what follows
    trainer = killed.run()
    assert killed.steps == whole.steps - before and found_by(trainer, killed) == expected


def test_the_actors_pretraining_goes_on_although_nothing_is_validated(world, tmp_path):
    words = ("--pretrain_epochs=4", "--train_stage=actor_pretrain")
    whole, killed = (Training("RaCT", world, tmp_path / kind, *words) for kind in ("whole", "killed"))
    expected = found_by(whole.run(), whole)
    assert whole.steps % 4 == 0 and len(expected["losses"]) == 4
    killed.kill(whole.steps // 2 + 1)
    trainer = killed.run()
    assert killed.steps == whole.steps // 2 and found_by(trainer, killed) == expected


def test_rows_or_settings_that_are_others_begin_anew(world, tmp_path):
    whole, training = (Training("BPR", world, tmp_path / kind) for kind in ("whole", "killed"))
    whole.run()
    total, ends = whole.steps, whole.ends
    training.kill(ends[2] + 1)
    other = Training("BPR", world, training.folder, "--learning_rate=0.01")
    other.run()
    assert other.steps == total
    fewer = Training("BPR", make_world(tmp_path / "fewer", n_users=9, n_items=15), training.folder)
    fewer.run()
    assert fewer.ends[1] > 0
    training.run()
    assert training.steps == total - ends[2]


def test_without_validation_the_last_epoch_stands(world, tmp_path):
    whole, killed = (Training("BPR", world, tmp_path / kind, "--eval_step=0") for kind in ("whole", "killed"))
    weights = whole.run().model.state_dict()
    killed.kill(whole.steps // EPOCHS * 2 + 2)
    found = killed.run().model.state_dict()
    assert killed.steps == whole.steps // EPOCHS * 3
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_a_state_of_another_format_is_not_read(world, tmp_path, monkeypatch):
    training = Training("BPR", world, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("recbole_llm.classic.epochs.FORMAT", 1)
        training.kill(12)
        (state,) = (tmp_path / "unfinished").glob("*/state")
        assert load_training(state)[1]["epoch"] >= 1
    training.run()
    assert training.ends[1] > 0


@pytest.mark.parametrize(("seconds", "kept"), [(0.9, [1, 2, 3, 4]), (2.5, [3])])
def test_short_epochs_share_a_state_and_end_as_if_nothing_had_been(seconds, kept, world, tmp_path, monkeypatch):
    """Epochs of a second each, by a planted clock: two states lie so far apart, and what follows is repeated."""
    whole, killed = (Training("BPR", world, tmp_path / kind) for kind in ("whole", "killed"))
    expected, total, ends = found_by(whole.run(), whole), whole.steps, whole.ends
    saved, save = list[int](), epochs.save_training
    monkeypatch.setattr(epochs, "SAVE_SECONDS", seconds)
    monkeypatch.setattr(epochs, "time", SimpleNamespace(monotonic=lambda: float(len(killed.ends))))
    monkeypatch.setattr(epochs, "save_training", lambda *state: saved.append(state[2]["epoch"]) or save(*state))
    killed.kill(ends[4] + 1)
    assert saved == kept
    trainer = killed.run()
    assert killed.steps == total - ends[kept[-1]] and found_by(trainer, killed) == expected
