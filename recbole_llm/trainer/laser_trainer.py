"""Training of Laser: a stage whose item vectors follow the weights, and one in which they stay."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch

from recbole_llm.adapter.experts import load_balance_loss
from recbole_llm.distributed import asks_for_shards, process
from recbole_llm.llm.contrastive import all_item_loss
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.model.backbones import computes_in_half
from recbole_llm.model.laser import Laser
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.timeline import timeline
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import StepLoss
from recbole_llm.trainer.tuning import Tuning, TuningResult
from recbole_llm.trainer.tuning_stages import FineTuneStage

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_llm.trainer.valid_loss import ValidLoss

RANKING = ("faiss_index", "faiss_search", "repeatable")  # what decides a ranking besides the weights


class BiTuningLoss(StepLoss):
    """Cross-entropy of the target among all items by cosine, and the balance of the experts.

    The first is the mean over the rows of a step; the second is of the items of all its histories. Item vectors have no
    gradient. Several processes share a step's forward passes; the balance, of which no LLM is part, all compute, and
    the main one adds its gradient.

    Args:
        passes: passes of the training.
        model: the recommender.
        targets: item ids int64 [rows].
        refreshes: whether the item vectors are computed again after every epoch.
    """

    dropout: ClassVar[bool] = False
    scheduled_prompts: ClassVar[bool] = False

    def __init__(self, passes: Passes, model: Laser, targets: np.ndarray, refreshes: bool) -> None:
        super().__init__(passes)
        self.model, self.refreshes = model, refreshes
        position = np.full(model.catalog.n_items, -1)
        position[model.titled] = np.arange(len(model.titled))
        self._targets = torch.from_numpy(position[targets]).to(model.device)
        self._titled = torch.from_numpy(model.titled).to(model.device)
        self._chosen = np.zeros(model.settings.experts, dtype=np.int64)
        self._balance: list[float] = []
        self._begun = (self._chosen.copy(), 0)  # what was chosen before the step, and how many balances were noted

    def lengths(self, kinds: Collection[str]) -> np.ndarray:
        """See :class:`StepLoss`; a row is its prompt and the vectors around it."""
        total: np.ndarray = self.passes.prompt_lengths + self.model.settings.prefix_len + 1
        return total

    def backward(self, rows: np.ndarray, weights: Mapping[str, float], lengths: np.ndarray) -> np.ndarray:
        """See :class:`StepLoss`."""
        model, passes, settings = self.model, self.passes, self.model.settings
        self._begun = (self._chosen.copy(), len(self._balance))
        if not model.table.vectors.any():  # the first step of all
            model.refresh_items()
        balance = self._backward_balance(rows)
        items, total = model.table.vectors[self._titled], 0.0
        for one in process().own(passes.of_step(rows, list(weights), lengths)):
            own = one.rows
            with model.autocast():
                states = model.item_states([passes.histories[row] for row in own])
                users = model.encode([passes.prompts[row] for row in own], states)
            loss = all_item_loss(users, items, self._targets[own], settings.tau) * (len(own) / len(rows))
            loss.backward()
            self.tokens += one.n_tokens
            total += loss.item()
        return np.array([total + settings.balance * balance if process().is_main else total])

    def undo_step(self) -> None:
        """See :class:`StepLoss`."""
        self._chosen, n_noted = self._begun
        del self._balance[n_noted:]

    def _backward_balance(self, rows: np.ndarray) -> float:
        """The gradient of the experts' balance, which no LLM takes part in. Returns: the balance, without its weight.

        A step whose histories hold no known item has none.
        """
        mformer = self.model.bi_tuning.mformer
        states = self.model.item_states([self.passes.histories[row] for row in rows])
        np.add.at(self._chosen, mformer.chosen(states), 1)
        if not any(map(len, states)):
            return 0.0
        balance = load_balance_loss(mformer.votes(states))
        if self.model.settings.balance and process().is_main:
            (self.model.settings.balance * balance).backward()
        self._balance.append(balance.item())
        return self._balance[-1]

    def after_epoch(self) -> None:
        """See :class:`StepLoss`."""
        if self.refreshes:
            self.model.refresh_items()

    def record(self) -> dict[str, Any]:
        """See :class:`StepLoss`: how often each expert was chosen, as shares; the mean balance; how alike items are."""
        usage = self._chosen / max(int(self._chosen.sum()), 1)
        told = {"expert_usage": usage.tolist(), "balance_loss": float(np.mean(self._balance or [0.0]))}
        # The mean cosine of all pairs is the squared length of the mean vector.
        told["item_cosine"] = float(self.model.table.vectors[self._titled].mean(dim=0).square().sum())
        self._chosen[:], self._balance = 0, []
        return told

    def state(self) -> dict[str, Any]:
        """See :class:`StepLoss`."""
        gathered = self._balance or self._chosen.any()
        return {"chosen": self._chosen.tolist(), "balance": list(self._balance)} if gathered else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`StepLoss`."""
        self._chosen, self._balance = np.array(state["chosen"], dtype=np.int64), list(state["balance"])


class RefreshedItemsStage(FineTuneStage):
    """The first stage: before every epoch, and before it is validated, the catalogue's vectors are computed again."""

    name = "bi-tuning"
    refreshes: ClassVar[bool] = True

    def __init__(self, tuning: Tuning) -> None:
        super().__init__(tuning)
        self.is_joint = not asks_for_shards()  # there is nothing to deal out of an LLM that stays as it is

    @property
    def _model(self) -> Laser:
        return cast(Laser, self.tuning.model)

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = self._model.settings
        ranking = {name: self.tuning.config[name] for name in RANKING}
        # With autocast, items used to be encoded without it, and the router to vote in bfloat16.
        router = {"router": "float32"} if computes_in_half(self.tuning.config) else {}
        return {**super().facts(), "answering": ranking, "losses": {"tau": own.tau, "balance": own.balance}, **router}

    def make_loss(self, passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> StepLoss:
        """See :class:`FineTuneStage`."""
        targets = self.tuning.rows.readable[self._model.ITEM_ID].numpy()
        return BiTuningLoss(passes, self._model, targets, self.refreshes)

    def doubts(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """See :class:`FineTuneStage`; there is no loss of tokens."""
        return self.warmup_doubts(len(self.tuning.rows.examples))


class FixedItemsStage(RefreshedItemsStage):
    """The second stage: the item vectors of the first one's best epoch stay, and its weights go on.

    Args:
        tuning: what it is tuned on, and how it is evaluated.
        before: the first stage; the model has its weights and item vectors.
    """

    name = "bi-tuning-fixed"
    group = "Fixed/"
    refreshes: ClassVar[bool] = False

    def __init__(self, tuning: Tuning, before: TuningResult) -> None:
        super().__init__(tuning)
        self._before = before

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        facts = super().facts()
        settings = {**facts["settings"], "epochs": self.settings.epochs}
        return {**facts, "settings": settings, "before": self._before.folder.name}

    @property
    def settings(self) -> FineTuneSettings:
        """Settings of the first stage, with ``fixed_epochs`` epochs."""
        return replace(super().settings, epochs=self._model.settings.fixed_epochs)


class LaserTrainer(LLMTrainer):
    """Runs the two stages of Laser."""

    model: Laser

    def _make_valid_loss(self, valid_data: AbstractDataLoader) -> ValidLoss | None:
        """None: there are no answers."""
        return None

    @classmethod
    def _tuning_stages(cls, config: Config) -> list[str]:
        """See :class:`LLMTrainer`."""
        fixes = LaserSettings.from_settings(config.final_config_dict).fixed_epochs
        return [RefreshedItemsStage.name, *([FixedItemsStage.name] if fixes else [])]

    def _tune(self, tuning: Tuning) -> None:
        stages = self.model.stages
        timeline().begin(RefreshedItemsStage.name)
        self.tuned = [stages.run(RefreshedItemsStage(tuning))]
        if FixedItemsStage.name in self._tuning_stages(self.config):
            timeline().begin(FixedItemsStage.name)
            self.tuned.append(stages.run(FixedItemsStage(tuning, self.tuned[0])))

    def write_run(self, folder: Path) -> None:
        """What learned, and the catalogue's vectors."""
        shutil.copytree(self.tuned[-1].folder / "adapter", folder / "adapter")
