"""TALLRec: would this user like this item, yes or no (arXiv 2305.00447)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, NoReturn

import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.labels import missing_likes
from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.llm.budget import run_batches
from recbole_llm.llm.loss import logits_at
from recbole_llm.llm.rows import pad_batch
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.tiny_llm import Inventor, invent_clicks
from recbole_llm.modes import evaluating
from recbole_llm.prompt import ClickPromptEncoder, Example, PromptEncoder
from recbole_llm.prompt.click import ANSWERS
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

log = logging.getLogger(__name__)


class TALLRec(LLMRecommender):
    """The history, split into liked and disliked titles, and a question about one more title; the answer is Yes or No.

    A row's score is the log-ratio of the two answer tokens at the position after the prompt; its sigmoid is the
    probability of a like, the two-way softmax over both logits. A row whose target has no title scores 0.
    """

    task: ClassVar[str] = "click"
    prompt_encoder: ClassVar[type[PromptEncoder]] = ClickPromptEncoder
    inventor: ClassVar[Inventor] = staticmethod(invent_clicks)
    prompts: ClickPromptEncoder

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.LABEL = config["LABEL_FIELD"]
        self.LABEL_SEQ = self.LABEL + config["LIST_SUFFIX"]

    def _longest_answer(self) -> int:
        """Yes or No, a full stop, EOS."""
        return 3

    @property
    def n_answers(self) -> int:
        """Yes and No."""
        return len(ANSWERS)

    # ---- rows to prompts

    def likes(self, interaction: Interaction) -> list[list[bool]]:
        """Whether the user liked each item of each row's history, oldest first, without padding."""
        if self.LABEL_SEQ not in interaction:
            raise missing_likes(self.LABEL_SEQ)
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        labels = (interaction[self.LABEL_SEQ] > 0).tolist()
        return [own[:n] for own, n in zip(labels, lengths, strict=True)]

    def examples(self, interaction: Interaction) -> list[Example]:
        """See :class:`LLMRecommender`; whether the target was liked is not known without its label."""
        examples = super().examples(interaction)
        known = (interaction[self.LABEL] > 0).tolist() if self.LABEL in interaction else [None] * len(examples)
        rows = zip(examples, self.likes(interaction), known, strict=True)
        return [replace(example, likes=likes, liked=liked) for example, likes, liked in rows]

    # ---- answering

    @torch.no_grad()
    def log_ratios(self, interaction: Interaction) -> torch.Tensor:
        """Logit of Yes minus logit of No after each row's prompt. Returns: float64 [rows]."""
        prompts, histories = self.row_prompts(interaction), self.histories(interaction)
        asked = {row: prompt for row, prompt in enumerate(prompts) if prompt is not None}
        if len(asked) < len(prompts):
            log.warning("%d rows ask about an item without a title; their score is 0.", len(prompts) - len(asked))
        ratios = torch.zeros(len(prompts), dtype=torch.float64, device=self.device)
        rows, lengths = list(asked), list(map(len, asked.values()))
        kept = self.keep("clicks", lambda: {"prompts": [prompts, histories]})
        ratios_of = self._ratios_of(asked, histories)

        def run(batch: list[int]) -> None:
            chosen = [rows[index] for index in batch]
            values = kept.batch(chosen, ratios_of)
            ratios[torch.tensor(chosen, device=self.device)] = ratios.new_tensor([values[row] for row in chosen])

        batches = run_batches(lengths, self.generation_budget, run, "shortest first", together=True)
        process().complete(ratios, [[rows[index] for index in batch] for batch in batches])
        return ratios

    def _ratios_of(
        self, prompts: Mapping[int, list[int]], histories: Sequence[Sequence[int]]
    ) -> Callable[[Sequence[int]], dict[int, float]]:
        """Gives the log-ratios of rows by their numbers, one forward pass."""

        def ratios(rows: Sequence[int]) -> dict[int, float]:
            with evaluating(self.llm), self.autocast(), self.conditioned_on([histories[row] for row in rows]):
                logits = self._last_logits([prompts[row] for row in rows])
            no, yes = logits[:, list(self.prompts.answer_token_ids)].double().unbind(dim=1)
            return dict(zip(rows, (yes - no).tolist(), strict=True))

        return ratios

    def _last_logits(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Logits of the token after each prompt. Returns: [prompts, vocabulary]."""
        input_ids, mask = pad_batch(prompts, self.backbone.pad_token_id, self.device, left=True)
        rows = torch.arange(len(prompts), device=self.device)
        return logits_at(self.llm, rows, torch.full_like(rows, mask.shape[1] - 1), input_ids, mask)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Probability that each row's user likes its target. Returns: float64 [rows]."""
        return torch.sigmoid(self.log_ratios(interaction))

    def generate_beams(self, interaction: Interaction) -> list[list[str]]:
        """Both answers to each row's question, the likelier first."""
        return [["Yes.", "No."] if ratio >= 0 else ["No.", "Yes."] for ratio in self.log_ratios(interaction).tolist()]

    def generate_text(self, interaction: Interaction) -> list[str]:
        """The likelier answer to each row's question."""
        return [answers[0] for answers in self.generate_beams(interaction)]

    def full_sort_predict(self, interaction: Interaction) -> NoReturn:
        """Not available: the score of each item needs a question of its own."""
        raise InputError(
            "eval_args: mode: TALLRec predicts clicks, so it ranks no catalogue; give labeled", kind="conflict"
        )
