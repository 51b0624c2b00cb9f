"""RecBole's models, killed in training: the same command ends with the bits of one that was not killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.trainer import Trainer

from recbole_llm.classic.training import fit_classic
from recbole_llm.data.rows import load_rows
from recbole_llm.settings.config import Config
from tests.runs import words_for, working_in
from tests.worlds import make_world

EPOCHS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "small", n_users=10, n_items=15)


class Training:
    """One command's training of a model, which may be killed in an epoch.

    Args:
        name: of the model.
        world: the data set.
        folder: working folder.
        *words: further words of the command.
    """

    def __init__(self, name: str, world: Path, folder: Path, *words: str) -> None:
        own = (f"--epochs={EPOCHS}", "--eval_step=1", "--stopping_step=2", "--train_batch_size=16", *words)
        self.words = [word for word in words_for(name, world, folder / "saved", *own) if "--model=" not in word]
        self.name, self.world, self.folder = name, world, folder
        self.epochs: list[int] = []
        self.scores: list[tuple[int, float]] = []

    def run(self, monkeypatch: pytest.MonkeyPatch, dies_in: int = 0, steps: int = 0) -> Any:
        """Train from what lies in the folder; killed in an epoch, from 1, after some steps. Returns: the trainer."""
        train, self.epochs, self.scores = Trainer._train_epoch, [], []

        def noted(trainer: Any, loader: Any, epoch: int, **options: Any) -> Any:
            self.epochs.append(epoch + 1)
            loss = trainer.model.calculate_loss
            left = [steps]

            def dying(batch: Any) -> Any:
                left[0] -= 1
                if left[0] < 0 and epoch + 1 == dies_in:
                    raise KeyboardInterrupt
                return loss(batch)

            return train(trainer, loader, epoch, loss_func=dying, **options)

        monkeypatch.setattr(Trainer, "_train_epoch", noted)
        try:
            with working_in(self.folder):
                config = Config(self.name, self.world.name, argv=self.words)
                told = lambda epoch, score: self.scores.append((epoch, score))  # noqa: E731
                unfinished = self.folder / "unfinished"
                return fit_classic(config, load_rows(config, False), self.folder / "m.pth", told, unfinished=unfinished)
        finally:
            monkeypatch.setattr(Trainer, "_train_epoch", train)


def found_by(trainer: Any, training: Training) -> dict[str, Any]:
    """Everything that a training ends with."""
    return {
        "losses": trainer.train_loss_dict,
        "best": [trainer.best_valid_score, dict(trainer.best_valid_result), trainer.cur_step],
        "scores": training.scores,
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
    }


# SASRec drops out, BERT4Rec masks by Python's generator, BPR draws by numpy's, LightGCN keeps what it has propagated,
# MultiVAE counts its steps, SGL makes graphs that no state can hold.
@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec", "BPR", "LightGCN", "MultiVAE", "SGL"])
def test_killed_in_its_epochs_it_ends_as_if_nothing_had_been(name, world, tmp_path, monkeypatch):
    folders = [tmp_path / kind for kind in ("whole", "killed")]
    for folder in folders:
        (folder / "saved").mkdir(parents=True)
    whole, killed = (Training(name, world, folder) for folder in folders)
    expected = found_by(whole.run(monkeypatch), whole)
    n_epochs = len(expected["losses"])
    assert n_epochs >= 4 and len(set(expected["losses"].values())) == n_epochs
    kept = name != "SGL"
    for dies_in, first in ((2, 1), (4, 2)):
        with pytest.raises(KeyboardInterrupt):
            killed.run(monkeypatch, dies_in)
        assert killed.epochs[0] == (first if kept else 1) and killed.epochs[-1] == dies_in
    trainer = killed.run(monkeypatch)
    assert killed.epochs == list(range(4 if kept else 1, n_epochs + 1))
    assert found_by(trainer, killed) == expected


def test_rows_or_settings_that_are_others_begin_anew(world, tmp_path, monkeypatch):
    (tmp_path / "saved").mkdir()
    training = Training("BPR", world, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.run(monkeypatch, dies_in=3)
    other = Training("BPR", world, tmp_path, "--learning_rate=0.01")
    other.run(monkeypatch)
    assert other.epochs[0] == 1
    fewer = Training("BPR", make_world(tmp_path / "fewer", n_users=9, n_items=15), tmp_path)
    fewer.run(monkeypatch)
    assert fewer.epochs[0] == 1
    training.run(monkeypatch)
    assert training.epochs[0] == 3


def test_without_validation_the_last_epoch_stands(world, tmp_path, monkeypatch):
    weights = []
    for kind, deaths in (("whole", ()), ("killed", (3,))):
        (folder := tmp_path / kind / "saved").mkdir(parents=True)
        training = Training("BPR", world, folder.parent, "--eval_step=0")
        for dies_in in deaths:
            with pytest.raises(KeyboardInterrupt):
                training.run(monkeypatch, dies_in, steps=1)
        weights.append(training.run(monkeypatch).model.state_dict())
    assert training.epochs == [3, 4, 5]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
