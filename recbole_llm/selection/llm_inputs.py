"""Inputs of selectors from the untuned LLM: gradients, losses and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from recbole_llm.coreset import GradientNorms, effort_weights, el2n_scores, losses_per_row
from recbole_llm.coreset.influence.losses import frozen
from recbole_llm.coreset.settings import SAME, CoresetSettings, EffortSettings
from recbole_llm.curriculum import REAL
from recbole_llm.declare import keys_by_name
from recbole_llm.distributed import process
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.prefill import PrefillScorer
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.model.item_vectors import ItemVectors
from recbole_llm.model.objective_reader import check_titles, make_reader
from recbole_llm.modes import evaluating
from recbole_llm.objective import TokenObjective, make_objective
from recbole_llm.progress import Bar
from recbole_llm.prompt.batches import micro_batches
from recbole_llm.selection.data_inputs import DataInputs
from recbole_llm.selection.provider import Provider, RowInput, row_input
from recbole_llm.selection.text_vectors import ROWS
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole_llm.selection.row_inputs import RowInputs

ENCODER: dict[str, Any] = {"pooling": "last", **ROWS}  # of the histories' titles


class LLMInputs(Provider):
    """What the untuned LLM says of rows whose answer is a title.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        data: the rows.
        examples: prompt and response of each row to choose from.
    """

    is_joint: ClassVar[bool] = True

    def __init__(self, model: LLMRecommender, config: Config, data: DataInputs, examples: Sequence[TokenPair]) -> None:
        super().__init__()
        self.model, self.config, self.data, self.pool, self.examples = model, config, data, data.pool, examples
        self.settings = EffortSettings.from_settings(config.final_config_dict)

    @classmethod
    def of(cls, rows: RowInputs) -> LLMInputs:
        """See :class:`Provider`."""
        return cls(rows.model, rows.config, rows.data, rows.examples)

    def facts(self, declared: RowInput) -> dict[str, Any]:
        """See :class:`Provider`."""
        if declared.name == LLMInputs.llmemb_vectors.__name__:
            return {**self.pool.digests, "vectors": self._item_vectors.fingerprint}
        return {
            **self.pool.digests,
            "settings": {key: self.config[key] for key in declared.settings},
            "seed": self.config["seed"],
            "model": self.model.facts(),
            "class": type(self.model).__name__,
            **(self._loss_facts() if declared.of_loss else {}),
            **(self._encoder_facts() if declared.name == LLMInputs.llm_vectors.__name__ else {}),
        }

    @row_input("gradient_norms", settings=tuple(keys_by_name([EffortSettings])), of_loss=True)
    def effort(self) -> np.ndarray:
        """Norms of the gradient of the untuned LLM's loss by the adapter's weights. Returns: [n]."""
        return self._norms(self._answer_losses)

    @row_input(settings=("effort_tokens",), of_loss=True)
    def quality(self) -> np.ndarray:
        """Minus the untuned LLM's loss on each row: how likely its answer is. Returns: [n]."""
        return self._numbers(lambda batch: -self._losses(batch))

    @row_input("vectors", chosen_by=("coreset_vectors", "llm"))
    def llm_vectors(self) -> np.ndarray:
        """Embeddings of the histories' titles by the untuned LLM. Returns: float32 [n, d]."""
        return self.model.embed(self._histories, self.model.show_progress, **ENCODER)

    @cached_property
    def _histories(self) -> list[str]:
        """The titles of each row's history."""
        return [self.data.titles(history) for history in self.pool.histories]

    @row_input("vectors", chosen_by=("coreset_vectors", "llmemb"))
    def llmemb_vectors(self) -> np.ndarray:
        """Means over the histories' items of the vectors that LLMEmb's tuning gives them. Returns: float32 [n, d]."""
        table = self._item_vectors.table
        return np.stack([table[list(history)].mean(axis=0) for history in self.pool.histories])

    @cached_property
    def _item_vectors(self) -> ItemVectors:
        return ItemVectors.beside(self.model, self.pool.data)

    @cached_property
    def objective(self) -> TokenObjective | None:
        """The loss that rows are scored by; None for the mean negative log-likelihood of their answers' tokens."""
        settings = CoresetSettings.from_settings(self.config.final_config_dict)
        return make_objective(self.config.final_config_dict) if settings.coreset_objective == SAME else None

    def _loss_facts(self) -> dict[str, Any]:
        slots = self.model.item_slots and self.settings.effort_tokens == "all"
        return {
            **({"objective": self.objective.facts()} if self.objective is not None else {}),
            **({"item_slots": "inputs"} if slots else {}),  # results that counted them as answer tokens are others
        }

    def _encoder_facts(self) -> dict[str, Any]:
        encoder = self.model.text_encoder(self.model.llm, **ENCODER)
        return {"encoder": encoder.fingerprint_facts(self._histories)}

    def _numbers(self, of_batch: Callable[[list[int]], torch.Tensor]) -> np.ndarray:
        """A number per row, without a gradient."""
        with torch.no_grad():
            return self._by_row("numbers", of_batch)

    def _norms(self, losses: Callable[[Sequence[int]], torch.Tensor]) -> np.ndarray:
        model = self.model
        # A gate network has no gradient yet: LoRA's B is 0 before tuning, so that gates make no difference.
        own = {*model.llm.parameters()} - {*model.adapter.trainable_groups(model.llm).get("gate", ())}
        with frozen(weight for weight in model.parameters() if weight not in own):
            norms = GradientNorms(model.llm, effort_weights(model.llm, self.settings.effort_weights))
            return self._by_row(
                "norms", lambda batch: norms(partial(losses, batch), [partial(losses, [row]) for row in batch])
            )

    def _by_row(self, name: str, of_batch: Callable[[list[int]], torch.Tensor]) -> np.ndarray:
        """A number per row, of what gives those of a batch of rows, in their order.

        Several processes share the batches; a killed run continues after its last one.
        """
        lengths = [len(prompt) + len(response) for prompt, response in self.examples]
        model, found = self.model, np.empty(len(self.examples))
        budget, longest = model.training_budget, max(lengths, default=0)
        budget.agree()
        batches = [[int(row) for row in batch] for batch in micro_batches(lengths, budget.tokens)]
        dealt, tokens = process().own(batches), budget.tokens
        rows = [row for batch in dealt for row in batch]
        settings = {"settings": asdict(self.settings), **self._loss_facts()}
        kept = model.keep(name, lambda: {**self.pool.digests, **settings})

        def numbers(batch: Sequence[int]) -> dict[int, float]:
            values = of_batch(list(batch)).detach().cpu().double().tolist()
            return dict(zip(batch, values, strict=True))

        done = set[int]()

        def run() -> None:
            own = dealt
            if budget.tokens < tokens:  # memory has run out
                left = [row for row in rows if row not in done]
                cut = micro_batches([lengths[row] for row in left], budget.tokens)
                own = [[left[index] for index in batch] for batch in cut]
            for batch in Bar(own, "rows", leave=False, disable=not model.show_progress):
                values = kept.batch(batch, numbers)
                found[batch] = [values[row] for row in batch]
                done.update(batch)

        if dealt:
            with evaluating(model), model.autocast():
                while not budget.attempt(run, budget.tokens, divisible=budget.tokens > longest):
                    pass
        process().complete(found, batches)
        return found

    def _losses(self, batch: Sequence[int]) -> torch.Tensor:
        """Loss of each row by what the model predicts. Returns: [rows]."""
        return self._answer_losses(batch)

    @cached_property
    def _prefill(self) -> PrefillScorer:
        return PrefillScorer(self.model.llm, self.model.backbone.pad_token_id)

    def _answer_losses(self, batch: Sequence[int]) -> torch.Tensor:
        """Mean loss of the tokens of each answer. Returns: [rows]."""
        if self.objective is not None:
            return self._objective_means(self.objective, batch)
        prompts, answers = zip(*(self._scored(*self.examples[row]) for row in batch), strict=True)
        with self.model.conditioned_on([self.pool.histories[row] for row in batch]):
            if self.model.adapter.needs_states:  # a pass that continues from a cache takes no gates of a context
                found = self.model.scorer.log_probs(prompts, [[answer] for answer in answers])
            else:
                found = self._prefill.log_probs(prompts, answers)
        return losses_per_row(-found.values, found.rows, len(batch))

    def _objective_means(self, objective: TokenObjective, batch: Sequence[int]) -> torch.Tensor:
        """The weighted mean of each answer; 0 where none of its tokens counts. Returns: [rows]."""
        prompts, answers = zip(*(self.examples[row] for row in batch), strict=True)
        with self.model.conditioned_on([self.pool.histories[row] for row in batch]):
            tokens = self._reader.read(prompts, [[answer] for answer in answers], objective.start_tau)
        losses, weights = objective.terms(tokens)
        weights = weights.detach()
        counted = torch.where(weights > 0, losses, 0.0) * weights
        sums, totals = (losses_per_row(one, tokens.rows, len(batch), mean=False) for one in (counted, weights))
        return sums / torch.where(totals > 0, totals, 1.0)

    @cached_property
    def _reader(self) -> AnswerReader:
        """Reads what the objective needs; of every pass the lines are the rows, for the norms of their gradients."""
        objective = cast(TokenObjective, self.objective)
        reader = make_reader(self.model, objective, lines_are_rows=True)
        if reader.legal is not None:
            check_titles(objective.name, {REAL: [answer for _, answer in self.examples]}, reader.legal)
        return reader

    def _scored(self, prompt: list[int], response: list[int]) -> tuple[list[int], list[int]]:
        """Prompt and answer of the loss; the code of DEALRec takes the prompt's own tokens in as well.

        Item slots are inputs there, and neither counted nor in the divisor.
        """
        if self.settings.effort_tokens == "answer":
            return prompt, response
        return prompt[:1], prompt[1:] + response


class ClickLLMInputs(LLMInputs):
    """What the untuned LLM says of rows whose answer is Yes or No; it stands for the recommender of next items too."""

    @row_input("grand", settings=("effort_weights",))
    def gradient_norms(self) -> np.ndarray:
        """Norms of the gradient of the loss of the choice between Yes and No. Returns: [n]."""
        return self._norms(self._losses)

    @row_input("el2n")
    def choice_errors(self) -> np.ndarray:
        """EL2N of clicks: the length of the error of the probabilities of No and Yes, sqrt(2) |p - y|. Returns: [n]."""
        return self._numbers(lambda batch: el2n_scores(self._choice_logits(batch), self._labels[batch]))

    def _losses(self, batch: Sequence[int]) -> torch.Tensor:
        """Cross entropy of each label under the two-way softmax over the tokens of No and Yes. Returns: [rows]."""
        logits = self._choice_logits(batch)
        return cross_entropy(logits, self._labels[batch].to(logits.device), reduction="none")

    def _choice_logits(self, batch: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the tokens of No and Yes after each prompt. Returns: [rows, 2]."""
        answers = [[token] for token in cast(Any, self.model.prompts).answer_token_ids]
        with self.model.conditioned_on([self.pool.histories[row] for row in batch]):
            found = self.model.scorer.log_probs([self.examples[row][0] for row in batch], [answers] * len(batch))
        return found.values.new_zeros(len(batch), len(answers)).index_put((found.rows, found.answers), found.values)

    @cached_property
    def _labels(self) -> torch.Tensor:
        return torch.from_numpy(self.data.labels())
