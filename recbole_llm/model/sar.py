"""SAR: an actor-critic chooses how many of the newest items a sequential model sees (arXiv 2108.01442)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from torch import Tensor

from recbole_llm.grounding.ranking import target_ranks
from recbole_llm.history.actor_critic import discounted_returns
from recbole_llm.history.policy import LengthPolicy, newest, policy_loss
from recbole_llm.history.settings import SarSettings
from recbole_llm.settings.models import find_model
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

    from recbole_llm.settings.config import Config

LEAST = -10.0  # of a reward by log-probability
CUTOFF = 10  # of a reward by NDCG


class SAR(SequentialRecommender):
    """One of RecBole's sequential models on the newest items of each history, as many as the actor chooses.

    The backbone learns as it does alone, on shortened histories; actor and critic learn from how well it then ranks
    the target, and do not move it. In evaluation the likeliest length is taken.

    Args:
        config: the resolved config; its sizes are the backbone's.
        dataset: the training rows.

    Attributes:
        lengths: history lengths to choose from, ascending.
        epoch: epoch of the training, from 0; the first ``sar_warmup_epochs`` draw lengths uniformly.
        fixed_length: a length for all rows in place of the actor's choice; None asks the actor.
    """

    trainer_class: ClassVar[type]

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._settings = settings = SarSettings.from_settings(config.final_config_dict)
        self.lengths = settings.choices(self.max_seq_length)
        self.backbone = find_model(settings.backbone)(config, dataset)
        self.policy = LengthPolicy(self.n_items, self.lengths, settings.state_dim, settings.state_len)
        self.epoch = 0
        self.fixed_length: int | None = None
        self._draws = torch.Generator().manual_seed(stage_seed(config["seed"], "sar", "lengths"))

    # ---- learning

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The backbone's loss on the chosen histories; after the warm-up also those of actor and critic."""
        histories, sizes = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.epoch < self._settings.warmup_epochs:
            chances = self.policy.allowed(sizes).float()
            return self._backbone_loss(interaction, self._draw(chances))
        log_probs, values = self.policy(histories, sizes)
        chosen = self._draw(log_probs.detach().exp())
        returns = self._returns(interaction, chosen)
        settings = self._settings
        weights = (settings.critic_weight, settings.actor_weight, settings.entropy)
        return self._backbone_loss(interaction, chosen) + policy_loss(log_probs, values, chosen, returns, *weights)

    def _draw(self, chances: Tensor) -> Tensor:
        """One length for each row, as its position. Returns: int64 [rows]."""
        return torch.multinomial(chances.cpu(), 1, generator=self._draws)[:, 0].to(chances.device)

    def _backbone_loss(self, interaction: Interaction, chosen: Tensor) -> Tensor:
        loss: Tensor = self.backbone.calculate_loss(self._shown(interaction, self.policy.lengths[chosen]))
        return loss

    def _shown(self, interaction: Interaction, lengths: Tensor) -> Interaction:
        """Rows with the newest items of their histories alone."""
        items, counts = newest(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], lengths)
        columns = {name: interaction[name] for name in interaction.columns}
        return type(interaction)({**columns, self.ITEM_SEQ: items, self.ITEM_SEQ_LEN: counts})

    @torch.no_grad()
    def _returns(self, interaction: Interaction, chosen: Tensor) -> Tensor:
        """The return of each row's choice; a user's rows, which are in their order, are an episode. Returns: [rows]."""
        was_training = self.backbone.training
        self.backbone.eval()
        rewards = self._rewards(interaction, self.policy.lengths[chosen])
        self.backbone.train(was_training)
        if not self._settings.gamma and not self._settings.standardise:
            return rewards
        users = interaction[self.USER_ID]
        returns = torch.empty_like(rewards)
        for user in torch.unique(users):
            own = users == user
            returns[own] = discounted_returns(rewards[own], self._settings.gamma, self._settings.standardise)
        return returns

    def _rewards(self, interaction: Interaction, lengths: Tensor) -> Tensor:
        """How well the target is ranked after the newest items, less their price. Returns: [rows]."""
        scores = self.backbone.full_sort_predict(self._shown(interaction, lengths))
        scores = scores.view(len(lengths), -1)[:, : self.n_items].clone()
        scores[:, 0] = -torch.inf
        targets = interaction[self.ITEM_ID]
        if self._settings.reward == "loglik":
            own = scores.gather(1, targets[:, None])
            gain = (own - scores.logsumexp(dim=1, keepdim=True))[:, 0].clamp(min=LEAST)
        else:
            ranks = target_ranks(scores, targets)
            if self._settings.reward == "hit":
                gain = (ranks == 0).to(scores.dtype)
            else:
                gain = ((ranks >= 0) & (ranks < CUTOFF)) / torch.log2(ranks.clamp(min=0) + 2.0)
        rewards: Tensor = gain - self._settings.cost * lengths / self.lengths[-1]
        return rewards

    # ---- ranking

    def shown_lengths(self, interaction: Interaction) -> Tensor:
        """How many items of each history the backbone sees. Returns: int64 [rows]."""
        sizes = interaction[self.ITEM_SEQ_LEN]
        if self.fixed_length is not None:
            return torch.full_like(sizes, self.fixed_length).clamp(max=sizes)
        return torch.minimum(self.policy.best(interaction[self.ITEM_SEQ], sizes), sizes)

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of the backbone. Returns: [rows]."""
        scores: Tensor = self.backbone.predict(self._shown(interaction, self.shown_lengths(interaction)))
        return scores

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the backbone. Returns: [rows, items]."""
        shown = self._shown(interaction, self.shown_lengths(interaction))
        scores: Tensor = self.backbone.full_sort_predict(shown)
        return scores


class UserBatches:
    """Training rows in batches of whole users, each user's rows in their order: what episodes are made of.

    Args:
        loader: RecBole's, whose rows and batch size they are.
        seed: seed of the order of users, which is another one at each pass.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self._loader, self._rng = loader, np.random.default_rng(seed)
        self.dataset = loader.dataset
        users = loader.dataset.inter_feat[loader.dataset.uid_field].numpy()
        by_user = np.argsort(users, kind="stable")
        self._episodes = np.split(by_user, np.flatnonzero(np.diff(users[by_user])) + 1)
        self._size = max(loader.step, 1)
        self._batches = self._cut()

    @property
    def generator(self) -> UserBatches:
        """What draws, as RecBole's loaders name it: this one has the two methods of torch's generators."""
        return self

    def get_state(self) -> Tensor:
        """State that the next pass is drawn from. Returns: uint8 [bytes]."""
        return torch.frombuffer(bytearray(json.dumps(self._before).encode()), dtype=torch.uint8)

    def set_state(self, state: Tensor) -> None:
        """Draw the next pass from a state that :meth:`get_state` gave."""
        self._rng.bit_generator.state = json.loads(state.numpy().tobytes())
        self._batches = self._cut()

    def _cut(self) -> list[np.ndarray]:
        """The batches of one pass, drawn before it begins, as their number is asked for."""
        self._before = self._rng.bit_generator.state
        batches: list[list[np.ndarray]] = [[]]
        for index in self._rng.permutation(len(self._episodes)):
            if batches[-1] and sum(map(len, batches[-1])) + len(self._episodes[index]) > self._size:
                batches.append([])
            batches[-1].append(self._episodes[index])
        return [np.concatenate(own) for own in batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        batches, self._batches = self._batches, self._cut()
        for own in batches:
            yield self.dataset.inter_feat[torch.from_numpy(own)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class SARTrainer(Trainer):
    """RecBole's trainer on batches of whole users, which tells the model the epoch."""

    keeps_epochs: ClassVar[bool] = True

    def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> Any:
        """See RecBole's trainer."""
        seed = stage_seed(self.config["seed"], "sar", "users")
        return super().fit(UserBatches(train_data, seed), *args, **kwargs)

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.model.epoch = epoch_idx
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)


SAR.trainer_class = SARTrainer
