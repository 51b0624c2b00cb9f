"""Inputs of selectors from the auxiliary recommender: errors, gradients, influence and states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction, cat_interactions

from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.coreset import MeanLoss, el2n_scores, grand_scores, parameter_losses, row_influence
from recbole_llm.coreset.influence.derivative import StagedLosses
from recbole_llm.coreset.influence.losses import Losses, frozen
from recbole_llm.coreset.settings import InfluenceSettings
from recbole_llm.data.rows import SAMPLE_ID, rows_digest
from recbole_llm.declare import keys_by_name
from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.provider import Provider, RowInput, row_input
from recbole_llm.selection.tail import TransformerTail, row_losses
from recbole_llm.settings.config import Config
from recbole_llm.settings.coreset_checks import on_validation
from recbole_llm.settings.recommender_checks import no_block, no_weights
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_llm.selection.row_inputs import RowInputs

INFLUENCE_SETTINGS = (*keys_by_name([InfluenceSettings]), "coreset_unit")
WEIGHT = "influence_weight"  # column of a row's part in the mean loss
_LOGITS = 2**21  # numbers of one batch's scores of all items: 8 MB in float32, near what a CPU's cache holds
_LARGEST_HESSIAN = 20_000  # weights; the matrix has their square
log = logging.getLogger(__name__)


class RecommenderVectors(Provider):
    """What the auxiliary recommender says of rows whatever the task is: its states.

    Args:
        auxiliary: the recommender, trained.
        config: the resolved config of the LLM recommender.
        pool: the rows to choose from.
    """

    is_joint: ClassVar[bool] = True

    def __init__(self, auxiliary: AuxiliaryRecommender, config: Config, pool: Pool) -> None:
        super().__init__()
        self.auxiliary, self.config, self.pool = auxiliary, config, pool

    @classmethod
    def of(cls, rows: RowInputs) -> RecommenderVectors:
        """The surrogate is the model's auxiliary recommender where it has one.

        A new one stays here: what a model has borrowed is among the facts of its fine-tuning, which does not depend on
        who chose the rows.
        """
        name = rows.config["recommender"]
        found: AuxiliaryRecommender | None = vars(rows.model).get("auxiliary")
        if found is None:
            needs_states = cls.recommender_vectors.__name__ in rows.needed
            found = AuxiliaryRecommender(rows.config, name, rows.model.stages, needs_states=needs_states)
        rows.note_seconds(name, rows.model.stages.root / found.fingerprint)
        return cls(found, rows.config, rows.pool)

    def facts(self, declared: RowInput) -> dict[str, Any]:
        """See :class:`Provider`."""
        facts = {
            **self.pool.digests,
            "settings": {key: self.config[key] for key in declared.settings},
            "seed": self.config["seed"],
            "recommender": self.auxiliary.fingerprint,
        }
        if on_validation(declared.name, self.config):
            facts["valid_rows"] = rows_digest(self.pool.valid_data)
        return facts

    @row_input("vectors", chosen_by=("coreset_vectors", "recommender"))
    def recommender_vectors(self) -> np.ndarray:
        """States after the histories. Returns: [n, d]."""
        histories, size = self.pool.histories, self.config["eval_batch_size"]
        parts = [histories[start : start + size] for start in range(0, len(histories), size)]
        return np.concatenate(process().share_out(parts, self.auxiliary.sequence_states))


class RecommenderInputs(RecommenderVectors):
    """What the auxiliary recommender says of rows of next items: its states, errors, gradients and influence."""

    @property
    def settings(self) -> InfluenceSettings:
        """How influence is computed."""
        return InfluenceSettings.from_settings(self.config.final_config_dict)

    @row_input()
    def el2n(self) -> np.ndarray:
        """Lengths of the error vectors. Returns: [n]."""
        target = self.pool.data.iid_field

        def errors(batch: Interaction) -> np.ndarray:
            found: np.ndarray = el2n_scores(self.auxiliary.scores(batch), batch[target].numpy())
            return found

        return np.concatenate(process().share_out(self._batches(self.pool.rows), errors))

    @row_input()
    def grand(self) -> np.ndarray:
        """Norms of the loss's gradient by all of the recommender's weights. Returns: [n]."""
        recommender = self.auxiliary.model
        params, losses = parameter_losses(
            recommender,
            influence_weights(recommender, "all"),
            lambda model, batch: full_losses(model, Interaction(batch)),
        )

        def norms(batch: Interaction) -> np.ndarray:
            return grand_scores(losses, params, self._on_device(batch).interaction).cpu().numpy()

        return np.concatenate(process().share_out(self._batches(self.pool.rows), norms))

    @row_input(settings=INFLUENCE_SETTINGS)
    def influence(self) -> np.ndarray:
        """Influence of each row, or user, on the recommender's mean loss. Returns: [n].

        A user's loss is the mean over all of the user's training rows, as in DEALRec; the mean loss is over users.
        """
        settings = self.settings
        names = influence_weights(self.auxiliary.model, settings.influence_weights)
        rows, owners = self._owned_rows()
        parts = [rows, *([self.pool.valid_rows] if on_validation("influence", self.config) else [])]
        params, losses, (rows, *evaluated) = self._loss_function(names, parts)
        if settings.influence_method == "exact" and len(params) > _LARGEST_HESSIAN:
            raise InputError(
                f"influence_method: exact needs a matrix of {len(params):,} x {len(params):,}; choose cg, or "
                "influence_weights: attention",
                kind="conflict",
            )
        train = self._mean_loss(losses, params, rows, owners, self._step_sample(rows, owners))
        targets = [self._mean_loss(losses, params, part, np.arange(len(part))) for part in evaluated]
        with frozen(self.auxiliary.model.parameters()):
            found = row_influence(
                train,
                targets[0] if targets else None,
                method=settings.influence_method,
                damping_ratio=settings.damping_ratio,
                damping=settings.influence_damping,
                scale=settings.influence_scale,
                **({} if settings.influence_steps is None else {"steps": settings.influence_steps}),
            )
        self.reported["influence"] = {**found.facts(), "weights": names}
        return np.bincount(owners, weights=found.scores.cpu().numpy(), minlength=len(self.pool))

    def _loss_function(
        self, names: list[str], parts: Sequence[Interaction]
    ) -> tuple[torch.Tensor, Losses, Sequence[Interaction]]:
        """Weights, losses as a function of them, and rows as that function takes them.

        Where the recommender's tail gives the losses of all rows, what lies before it is computed once.
        """
        recommender = self.auxiliary.model
        tail = TransformerTail.of(recommender, names)
        if tail is not None:
            known = [found for part in parts if (found := self._before(tail, part)) is not None]
            if len(known) == len(parts):
                return *tail_losses(tail, names), known
        log.info("Influence goes through the whole of %s in every step.", type(recommender).__name__)
        return *parameter_losses(recommender, names, weighted_losses), parts

    def _before(self, tail: TransformerTail, rows: Interaction) -> Interaction | None:
        """What the tail needs to know of rows, from one pass; None where it is no tail of this recommender."""
        batches = self._batches(rows)
        parts = [part for batch in batches if (part := tail.inputs(self._on_device(batch))) is not None]
        return cat_interactions([part.cpu() for part in parts]) if len(parts) == len(batches) else None

    def _owned_rows(self) -> tuple[Interaction, np.ndarray]:
        """The rows of the mean loss, and the index in the pool of what each belongs to: itself, or its user."""
        if self.config["coreset_unit"] == "row":
            return self.pool.rows, np.arange(len(self.pool))
        rows, user = self.pool.data.inter_feat, self.pool.data.uid_field
        rows = rows[rows[SAMPLE_ID].argsort()]  # so that the order of the rows has no part in rounding
        pool, users = self.pool.rows[user].numpy(), rows[user].numpy()
        order = np.argsort(pool)
        found = np.searchsorted(pool[order], users).clip(max=len(pool) - 1)
        own = pool[order][found] == users
        return rows[torch.from_numpy(own)], order[found][own]

    def _mean_loss(
        self,
        losses: Losses | StagedLosses,
        params: torch.Tensor,
        rows: Interaction,
        owners: np.ndarray,
        sample: Callable[[int], Interaction] | None = None,
    ) -> MeanLoss:
        batches = [self._on_device(batch) for batch in self._batches(weighted(rows, owners))]
        return MeanLoss(losses, params, batches, sample, progress=bool(self.config["show_progress"]))

    def _step_sample(self, rows: Interaction, owners: np.ndarray) -> Callable[[int], Interaction] | None:
        """Draws rows, or users with all of theirs, for the Hessian of a step; with replacement."""
        size = self.settings.influence_step_rows
        if size is None:
            return None
        by_owner = np.split(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners))[:-1])
        seed = stage_seed(self.config["seed"], "influence")

        def sample(step: int) -> Interaction:
            drawn = [
                by_owner[owner] for owner in np.random.default_rng([seed, step]).integers(len(by_owner), size=size)
            ]
            part = rows[torch.from_numpy(np.concatenate(drawn))]
            return self._on_device(weighted(part, np.repeat(np.arange(size), [len(own) for own in drawn])))

        return sample

    def _batches(self, rows: Interaction) -> list[Interaction]:
        size = max(1, min(self.config["eval_batch_size"], _LOGITS // self.pool.data.item_num))
        return [rows[part] for part in torch.arange(len(rows)).split(size)]

    def _on_device(self, batch: Interaction) -> Interaction:
        return batch.to(self.config["device"])


def weighted(rows: Interaction, owners: np.ndarray) -> Interaction:
    """Rows with weights whose mean over rows is the mean over owners of the mean over an owner's rows.

    Args:
        rows: N rows.
        owners: int64 [N], what each belongs to, 0 to n - 1.
    """
    counts = np.bincount(owners)
    weights = len(owners) / (len(counts) * counts[owners])
    return Interaction({**rows.interaction, WEIGHT: torch.from_numpy(weights).float()})


def full_losses(recommender: AbstractRecommender, batch: Interaction) -> torch.Tensor:
    """Cross entropy of each row's target under the recommender's full-sort scores. Returns: [rows]."""
    return row_losses(recommender.full_sort_predict(batch), batch[recommender.ITEM_ID])


def weighted_losses(recommender: AbstractRecommender, batch: Interaction) -> torch.Tensor:
    """:func:`full_losses` times the weights of :func:`weighted`. Returns: [rows]."""
    weights: torch.Tensor = batch[WEIGHT]
    return full_losses(recommender, batch) * weights


def tail_losses(tail: TransformerTail, names: Sequence[str]) -> tuple[torch.Tensor, StagedLosses]:
    """Weights of a recommender that are in its tail, and :func:`weighted_losses` as a function of them."""
    params, states = parameter_losses(tail, tail.names(names), cast(Any, TransformerTail.states))
    return params, StagedLosses(states, lambda found, batch: tail.losses(found, batch) * batch[WEIGHT])


def influence_weights(recommender: torch.nn.Module, which: str) -> list[str]:
    """Names of the recommender's weights that influence is computed by.

    Args:
        recommender: RecBole's model.
        which: ``attention`` (output projection of the last attention block, as the code of DEALRec does), ``ffn`` (the
            linear map after it), or ``all``.

    Raises:
        InputError: the model has no such weight.
    """
    kind = type(recommender).__name__
    names = [name for name, weight in recommender.named_parameters() if weight.requires_grad]
    if not names:
        raise no_weights(kind)
    if which == "all":
        return names
    ending = {"attention": "multi_head_attention.dense.weight", "ffn": "feed_forward.dense_2.weight"}[which]
    found = [name for name in names if name.endswith(ending)]
    if not found:
        raise no_block(kind, which)
    return found[-1:]
