"""The stage of ``history_policy``: how many items the prompts of a trained LLM model show."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from recbole_llm.data.rows import rows_digest, take_sample
from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.history import HistorySettings, LengthPolicy, learn_by_table
from recbole_llm.llm.budget import run_batches
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating
from recbole_llm.registry import find_choice
from recbole_llm.stages import Stage, stage_seed
from recbole_llm.training_state import seeded

if TYPE_CHECKING:
    from recbole.data.dataset import SequentialDataset
    from recbole.data.interaction import Interaction

    from recbole_llm.settings.config import Config

WEIGHTS, FACTS, REWARDS = "history_policy.safetensors", "history_policy.json", "rewards.npz"
WIDTH = 32  # of the actor's state
log = logging.getLogger(__name__)


class HistoryCut:
    """Cuts histories as a policy chooses; what :attr:`RowReader.history_cut` is.

    Args:
        policy: the trained policy, in eval mode.
        model: the model whose rows are cut.

    Attributes:
        lengths: history lengths to choose from, ascending.
        fixed_length: a length for all rows in place of the policy's choice; None asks the policy.
    """

    def __init__(self, policy: LengthPolicy, model: LLMRecommender) -> None:
        self.policy, self._model = policy, model
        self.lengths: list[int] = policy.lengths.tolist()
        self.fixed_length: int | None = None

    def __call__(self, histories: list[list[int]]) -> list[list[int]]:
        """The newest items of each history."""
        if not histories:
            return histories
        kept = self.chosen(histories)
        return [own[-length:] for own, length in zip(histories, kept, strict=True)]

    def chosen(self, histories: Sequence[Sequence[int]]) -> list[int]:
        """How many items of each history are shown, at most."""
        if self.fixed_length is not None:
            return [self.fixed_length] * len(histories)
        items, sizes = padded(histories)
        found: list[int] = self.policy.best(items, sizes).tolist()
        return found

    def shown_lengths(self, interaction: Interaction) -> torch.Tensor:
        """How many items of each row's history are shown. Returns: int64 [rows]."""
        return torch.tensor([len(own) for own in self._model.histories(interaction)])

    def prompt_tokens(self, interaction: Interaction) -> float:
        """Tokens of a row's prompt, on average over rows that have one."""
        prompts = [prompt for prompt in self._model.row_prompts(interaction) if prompt is not None]
        return float(np.mean([len(prompt) for prompt in prompts])) if prompts else 0.0


def padded(histories: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories as a table. Returns: int64 [rows, longest], 0 after the last item; int64 [rows]."""
    sizes = torch.tensor([len(own) for own in histories])
    items = torch.zeros(len(histories), int(sizes.max()), dtype=torch.long)
    for row, own in enumerate(histories):
        items[row, : len(own)] = torch.tensor(own)
    return items, sizes


class HistoryPolicyStage(Stage[LengthPolicy]):
    """Scores the true answers of some training rows after prompts of every length, and trains an actor-critic on that.

    The reward of a length is the log-likelihood of the answer per token, less ``history_price`` times the prompt's
    tokens over those of the prompt with all items. The LLM does not learn.

    Args:
        model: trained; its weights stand.
        config: the resolved config.
        train: the training rows.
        weights: what the LLM's weights are, by the name of the stage that tuned them.
    """

    name = "history-policy"
    format_number: ClassVar[int] = 3

    def __init__(self, model: LLMRecommender, config: Config, train: SequentialDataset, weights: str) -> None:
        self._model, self._config, self._weights = model, config, weights
        self.settings = HistorySettings.from_settings(config.final_config_dict)
        self.lengths = self.settings.choices(config["MAX_ITEM_LIST_LENGTH"])
        self._rows = take_sample(train, self.settings.history_rows, config["seed"], "history-policy")

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        settings = self.settings
        return {
            "model": self._model.facts(),
            "weights": self._weights,
            "policy": settings.history_policy,
            "settings": [self.lengths, settings.history_price, settings.history_updates],
            "rows": rows_digest(self._rows),
            "seed": self._config["seed"],
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        histories, rewards = self._rewards()
        items, sizes = padded(histories)
        seed = stage_seed(self._config["seed"], self.name)
        with seeded(seed, torch.device("cpu")):
            policy = self._untrained()
            learn_by_table(policy, items, sizes, torch.from_numpy(rewards), self.settings.history_updates, seed)
        np.savez_compressed(folder / REWARDS, rewards=rewards, sizes=sizes.numpy())
        state = {name: value.contiguous() for name, value in policy.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        write_json(folder / FACTS, {"policy": self.settings.history_policy, "lengths": self.lengths})
        chosen = policy.best(items, sizes)
        gained = np.nanmean(rewards[np.arange(len(rewards)), np.searchsorted(self.lengths, chosen.numpy())])
        log.info(
            "history_policy: reward %.4f on %d rows; of one length for all: %s",
            gained,
            len(rewards),
            self._of_one(rewards),
        )

    def _of_one(self, rewards: np.ndarray) -> str:
        """Mean reward of each length, a longer one than a history is that of the whole."""
        longest = np.where(np.isnan(rewards), -np.inf, np.arange(rewards.shape[1])).max(axis=1).astype(int)
        index = np.minimum(np.arange(rewards.shape[1])[None], longest[:, None])
        means = np.take_along_axis(rewards, index, axis=1).mean(axis=0)
        return ", ".join(f"{length}: {mean:.4f}" for length, mean in zip(self.lengths, means, strict=True))

    def _untrained(self) -> LengthPolicy:
        kind = cast("type[LengthPolicy]", find_choice("history_policy", self.settings.history_policy))
        return kind(self._model.n_items, self.lengths, WIDTH, self._config["MAX_ITEM_LIST_LENGTH"])

    @torch.no_grad()
    def _rewards(self) -> tuple[list[list[int]], np.ndarray]:
        """Histories of the readable rows, and what each length brings: float32 [rows, lengths], NaN for none."""
        model = self._model
        asked: list[tuple[int, int, list[int], list[int], list[int]]] = []
        kept: list[list[int]] = []
        in_all: list[int] = []  # tokens of each row's prompt with all items, be it offered or not
        for whole in model.examples(self._rows.inter_feat):
            history = list(whole.history)
            examples = [replace(whole, history=history[-n:]) for n in self._distinct(len(history))]
            if not all(model.prompts.has_prompt(one) and model.prompts.has_response(one) for one in examples):
                continue
            for index, one in enumerate(examples):
                prompt = model.prompts.prompt(one)
                answer = model.fitted(prompt, model.prompts.response(one))
                asked.append((len(kept), index, prompt, answer, list(one.history)))
            kept.append(history)
            in_all.append(len(model.prompts.prompt(whole)))
        if not kept:
            raise InputError("history_policy", "no training row has titles at every length to be scored", kind="data")
        sizes = [len(prompt) + len(answer) for _, _, prompt, answer, _ in asked]
        rewards = np.full((len(kept), len(self.lengths)), np.nan, dtype=np.float32)
        tokens = np.zeros_like(rewards)
        with evaluating(model):

            def run(batch: list[int]) -> None:
                rows, indices, prompts, answers, histories = zip(*(asked[place] for place in batch), strict=True)
                with model.autocast(), model.conditioned_on(histories):
                    found = model.scorer.log_probs(prompts, [[answer] for answer in answers])
                sums = found.values.new_zeros(len(prompts)).index_add(0, found.rows, found.values)
                rewards[rows, indices] = (sums.cpu() / torch.tensor([len(answer) for answer in answers])).numpy()
                tokens[rows, indices] = [len(prompt) for prompt in prompts]

            run_batches(sizes, model.generation_budget, run, "shortest first")
        return kept, rewards - self.settings.history_price * tokens / np.array(in_all, dtype=np.float32)[:, None]

    def _distinct(self, size: int) -> list[int]:
        """The lengths that show a history of this many items differently."""
        return [length for before, length in zip([0, *self.lengths], self.lengths, strict=False) if before < size]

    def load(self, folder: Path) -> LengthPolicy:
        """See :class:`Stage`."""
        return read_policy(folder, self._model.n_items, self._config["MAX_ITEM_LIST_LENGTH"])


def read_policy(folder: Path, n_items: int, longest: int) -> LengthPolicy:
    """The policy in a folder of the stage, or of a run.

    Args:
        folder: with ``history_policy.json`` and ``history_policy.safetensors``.
        n_items: items, padding among them.
        longest: items of the longest history.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    kind = cast("type[LengthPolicy]", find_choice("history_policy", facts["policy"]))
    policy = kind(n_items, facts["lengths"], WIDTH, longest)
    policy.load_state_dict(load_file(folder / WEIGHTS))
    return policy.eval()
