"""What TTDS adds to SemID: states of codes, and towers that follow the LLM."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.errors import InputError
from recbole_llm.llm.contrastive import infonce_loss
from recbole_llm.llm.parts import unwrapped
from recbole_llm.semantic_ids.codes import collision_rate
from recbole_llm.semantic_ids.rqvae import RQVAE, train_steps
from recbole_llm.semantic_ids.settings import TwinSettings
from recbole_llm.semantic_ids.table import tower_codes, unique_codes

MOST_COLLISIONS = 1.1  # times the rate before, up to which new codes are taken
MOST_USERS = 20  # that a prompt names
MOST_CONTRASTED = 512  # items or users of a step, drawn where there are more
log = logging.getLogger(__name__)


class TwinState(nn.Module):
    """The inputs of the codes at the last refresh; saved with the weights, though not trained.

    Args:
        item_vectors: float [items with codes, d].
        n_users: users, padding included.
        levels: levels of a user's code.
        user_texts: float [users, d], vectors of users' texts, zeros for a user without; None if not needed.

    Attributes:
        item_vectors: as given.
        user_texts: as given.
        user_codes: int64 [users, levels]; -1 for a user without training rows.
        user_mean: float32 [d], of the users' vectors, by which they are standardised, and so is the next.
        user_scale: float32 [d].
    """

    def __init__(
        self, item_vectors: np.ndarray, n_users: int, levels: int, user_texts: np.ndarray | None = None
    ) -> None:
        super().__init__()
        width = item_vectors.shape[1]
        self.item_vectors = _kept(torch.from_numpy(np.asarray(item_vectors, dtype=np.float32)))
        self.user_codes = _kept(torch.full((n_users, levels), -1, dtype=torch.int64))
        self.user_texts = None if user_texts is None else _kept(torch.from_numpy(user_texts.astype(np.float32)))
        self.user_mean, self.user_scale = _kept(torch.zeros(width)), _kept(torch.ones(width))


def _kept(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=False)


class UserTexts:
    """What is known of users in words.

    Args:
        texts: by internal id; empty for a user of whom nothing is known.

    Raises:
        InputError: nothing is known of anybody.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.said = [text for text in self.texts if text]
        if not self.said:
            raise InputError(
                "user_text_fields", "no user has text there; name other fields, or leave it out", kind="data"
            )

    def by_user(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, d] of ``said`` by user: float32 [users, d], zeros for a user without text."""
        found = np.zeros((len(self.texts), vectors.shape[1]), dtype=np.float32)
        found[[user for user, text in enumerate(self.texts) if text]] = vectors
        return found


@dataclass(frozen=True)
class TrainingInteractions:
    """Which user took which item in the training rows.

    Attributes:
        users_of: the users who took an item that has a code, in the order of the first time that each did.
        items_of: the items that the rows of a user show, each once.
    """

    users_of: Mapping[int, list[int]] = field(default_factory=dict)
    items_of: Mapping[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        users: Sequence[int],
        targets: Sequence[int],
        times: Sequence[float],
        histories: Sequence[Sequence[int]],
        named: Collection[int],
        longest: int = 0,
        history_times: Sequence[Sequence[float]] | None = None,
    ) -> TrainingInteractions:
        """The interactions that training rows show.

        Args:
            users: the user of each row.
            targets: the target of each row.
            times: the time of each row's target.
            histories: the items before each target, oldest first.
            named: the items that have a code.
            longest: items that a history shows at most: a shorter one shows all that its user took until then.
            history_times: when the items of each history were taken; by default, at the time of its row.
        """
        users_of: dict[int, dict[int, None]] = {}
        items_of: dict[int, dict[int, None]] = {}  # in the order in which they are first shown
        taken, seen = list(zip(times, users, targets, strict=True)), set[int]()
        for row in sorted(range(len(taken)), key=lambda row: times[row]):
            user, history = users[row], histories[row]
            if user not in seen and len(history) < longest:  # what the user took before its rows
                since = [times[row]] * len(history) if history_times is None else history_times[row]
                taken.extend((time, user, item) for time, item in zip(since, history, strict=True))
            seen.add(user)
        for _, user, item in sorted(taken):
            if item in named:
                users_of.setdefault(item, {})[user] = None
        for user, item, history in zip(users, targets, histories, strict=True):
            items_of.setdefault(user, {}).update(dict.fromkeys((*history, item)))
        return cls(*({key: list(found) for key, found in table.items()} for table in (users_of, items_of)))

    @property
    def users(self) -> list[int]:
        """The users with training rows, ascending."""
        return sorted(self.items_of)

    @cached_property
    def searches(self) -> list[tuple[int, list[int]]]:
        """Items that several users took, with the last of these in the order of time."""
        return [(item, users[-MOST_USERS - 1 :]) for item, users in sorted(self.users_of.items()) if len(users) > 1]


def contrast(sets: Sequence[tuple[Tensor, Tensor]], tau: float) -> Tensor | None:
    """InfoNCE of states against the vectors that they are to be drawn to, the mean over all of them.

    Args:
        sets: states and vectors, each float32 ``[n, d]``, contrasted within a set; one of a single state is left out.
        tau: temperature.

    Returns:
        A scalar; None where there is nothing to contrast.
    """
    sets = [pair for pair in sets if len(pair[0]) > 1]
    n_all = sum(len(states) for states, _ in sets)
    losses = [infonce_loss(*pair, tau) * (len(pair[0]) / n_all) for pair in sets]
    return torch.stack(losses).sum() if losses else None


def code_states(llm: nn.Module, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The LLM's mean states of codes alone. Returns: float32 [codes, d], with a gradient."""
    device = next(llm.parameters()).device
    if not tokens:
        return torch.zeros(0, 1, device=device)
    ids = torch.tensor([list(own) for own in tokens], device=device)
    decoder = unwrapped(llm).get_decoder()
    hidden: Tensor = decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    return hidden.float().mean(dim=1)


def distinct(ids: Sequence[int]) -> list[int]:
    """The different ids, ascending; a random part of them where there are too many."""
    distinct = sorted(set(ids))
    if len(distinct) <= MOST_CONTRASTED:
        return distinct
    return [distinct[index] for index in sorted(torch.randperm(len(distinct))[:MOST_CONTRASTED].tolist())]


def followed_codes(
    tower: RQVAE,
    points: np.ndarray,
    before: np.ndarray,
    settings: TwinSettings,
    seed: int,
    sinkhorn: float | None,
    counters: int | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Codes by a tower that has learned from vectors as they are now; the old ones where too many would collide.

    Args:
        tower: trained in place, unless its codes are not taken.
        points: float32 [n, d], standardised.
        before: int64 [n, levels], the codes so far.
        settings: steps and weight of the tower's loss.
        seed: seed of its steps.
        sinkhorn: see :func:`.tower_codes`.
        counters: tokens that tell apart what shares a code; None for any number.

    Returns:
        int64 [n, levels]; the share of codes that changed, and the collision rate.
    """
    old, data = {key: value.clone() for key, value in tower.state_dict().items()}, torch.from_numpy(points)
    if settings.rq_weight and settings.refresh_steps:
        train_steps(tower, data, settings.refresh_steps, seed, settings.rq_weight)
    codes = tower_codes(tower, data, sinkhorn)
    rate, limit = collision_rate(codes), MOST_COLLISIONS * collision_rate(before)
    fits = counters is None or int(unique_codes(codes)[:, -1].max()) < counters
    if rate > limit or not fits:
        if fits:
            log.warning("%.4f of the new codes collide, more than %.4f: the old ones stay.", rate, limit)
        else:
            log.warning("The new codes need more counters than there are tokens: the old ones stay.")
        tower.load_state_dict(old)
        codes, rate = before, collision_rate(before)
    return codes, {"codes_changed": float((codes != before).any(axis=1).mean()), "collision_rate": rate}
