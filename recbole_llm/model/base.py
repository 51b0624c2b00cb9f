"""What every LLM recommender shares: a history becomes a prompt, an answer becomes a loss or a text."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from transformers import PreTrainedTokenizerBase

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.prompt import PromptBuilder, PromptComposer, PromptTemplate, text_encoder
from recbole_llm.llm.backbone import Backbone, load_backbone
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.generation import Generation, beam_search
from recbole_llm.llm.tiny import PromptMaker, TinyLLMConfig, build_tiny_llm
from recbole_llm.registry import find_choice
from recbole_llm.stages import StageStore, stage_seed

TINY = "tiny"
Example = tuple[list[int], list[int]]
log = logging.getLogger(__name__)


class LLMRecommender(SequentialRecommender):
    """A causal language model that reads a history as text and answers with an item.

    A subclass says how an answer becomes scores (:meth:`full_sort_predict`) and, where it differs, how a row becomes a
    prompt (:meth:`examples`).

    Args:
        config: the resolved config of the run.
        dataset: a RecBole data set with the item columns loaded; its interactions are not read.

    Attributes:
        catalog: item id to title and back.
        prompts: history to token ids.
        backbone: the untuned LLM, its tokenizer and special token ids.
        adapter: which weights learn.
        llm: the LLM with the adapter attached; what is trained and what generates.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.config = config
        self.show_progress = bool(config["show_progress"])
        self.stages = StageStore(Path(config["checkpoint_dir"]) / "stages")
        self.catalog = ItemCatalog.from_dataset(
            dataset, config["title_field"], config["title_with"], tuple(config["item_text_fields"] or ())
        )
        self.template = PromptTemplate.of_domain(config["domain"])
        self.backbone = self._load_backbone()
        self.prompts = PromptBuilder(
            self.template,
            text_encoder(self.backbone.tokenizer),
            self.catalog,
            style=config["prompt_style"],
            bos_token_id=self.backbone.bos_token_id,
            eos_token_id=self.backbone.eos_token_id,
            max_prompt_tokens=self._prompt_limit(),
            chat_template=self.backbone.tokenizer,
        )
        self.adapter = find_choice("adapter", config["adapter"]).from_settings(config.final_config_dict)
        self.llm = self.adapter.attach(self.backbone.model)
        self.scorer = BranchScorer(self.llm, self.backbone.pad_token_id)

    # ---- the LLM

    def _load_backbone(self) -> Backbone:
        config = self.config
        path = str(self._tiny_llm()) if config["llm_path"] == TINY else config["llm_path"]
        return load_backbone(
            path,
            dtype=config["llm_dtype"],
            quant=config["quant"],
            device=self.device,
            gradient_checkpointing=config["gradient_checkpointing"],
            attn_implementation=config["attn_implementation"],
            trust_remote_code=config["trust_remote_code"],
            revision=config["llm_revision"],
        )

    def _prompt_limit(self) -> int:
        """``max_prompt_tokens``, or fewer where the LLM has no positions for so many and an answer."""
        wanted, answer = self.config["max_prompt_tokens"], self.config["max_new_tokens"]
        positions = getattr(self.backbone.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None or wanted + answer <= positions:
            return wanted
        log.warning("Prompts are cut to %d tokens: the LLM has %d positions.", positions - answer, positions)
        return positions - answer

    def _tiny_llm(self) -> Path:
        """The offline LLM of this catalogue and these prompts, built on first use."""
        log.warning("llm_path is 'tiny': a small LLM made from this data set's titles, for trying out, not for claims.")
        settings = TinyLLMConfig.from_settings(self.config.final_config_dict)
        layout = self.template.layout(self.config["prompt_style"])
        titles = [title or "" for title in self.catalog.titles]
        facts = {
            "settings": asdict(settings),
            "titles": titles,
            "attributes": self.catalog.attributes,
            "layout": asdict(layout),
            "history_length": self.max_seq_length,
        }

        def compose(tokenizer: PreTrainedTokenizerBase) -> PromptMaker:
            composer = PromptComposer(
                layout,
                text_encoder(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id,
                max_prompt_tokens=self.config["max_prompt_tokens"],
            )
            return lambda history, answer: composer.compose_example([titles[item] for item in [*history, answer]])

        def compute(folder: Path) -> None:
            build_tiny_llm(
                folder,
                titles=titles,
                attributes=self.catalog.attributes,
                template_texts=[layout.head, layout.tail],
                compose=compose,
                history_length=self.max_seq_length,
                config=settings,
                device=self.device,
                progress=self.show_progress,
            )

        return self.stages.get("tiny-llm", facts, compute)

    def untuned(self) -> AbstractContextManager[torch.nn.Module]:
        """The LLM as it was before tuning, for the duration of the context."""
        return self.adapter.untuned(self.llm)

    def facts(self) -> dict[str, Any]:
        """What every prompt and every answer of this model depends on, before any tuning."""
        return {
            "llm": self.backbone.fingerprint,
            "dtype": self.config["llm_dtype"],
            "quant": self.config["quant"],
            "catalog": self.catalog.fingerprint(),
            "prompt": self.prompts.fingerprint(),
            "adapter": self.adapter.facts(),
        }

    # ---- rows to prompts

    def histories(self, interaction: Interaction) -> list[list[int]]:
        """Item ids of each row's history, oldest first, without padding."""
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        return [items[:n] for items, n in zip(interaction[self.ITEM_SEQ].tolist(), lengths, strict=True)]

    def readable(self, history: Sequence[int]) -> bool:
        """Whether a history holds at least one item with a title."""
        return bool(self.catalog.has_title[list(history)].any())

    def examples(self, interaction: Interaction) -> list[Example | None]:
        """Prompt and response token ids of each row; None where history or target has no title."""
        targets = interaction[self.ITEM_ID].tolist()
        return [
            (self.prompts.prompt(history), self.prompts.response(target))
            if self.readable(history) and self.catalog.has_title[target]
            else None
            for history, target in zip(self.histories(interaction), targets, strict=True)
        ]

    # ---- training

    def answer_loss(self, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]) -> torch.Tensor:
        """Negative log-likelihood of the answers, summed over all tokens of each kind.

        Args:
            prompts: token ids of each prompt.
            answers: k answers to each prompt, such as the true and the distilled one; all k in one forward pass.

        Returns:
            float32 [k].
        """
        found = self.scorer.log_probs(prompts, answers)
        return found.values.new_zeros(len(answers[0])).index_add(0, found.answers, -found.values)

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """RecBole's training hook: mean over the response tokens of one batch of rows (BIGRec, arXiv 2308.08434)."""
        examples = [example for example in self.examples(interaction) if example is not None]
        if not examples:
            raise ValueError("no row of the batch has a titled history and a titled target")
        loss = self.answer_loss([prompt for prompt, _ in examples], [[response] for _, response in examples])
        return loss[0] / sum(len(response) for _, response in examples)

    # ---- answering

    def prepare(self) -> None:  # noqa: B027
        """Compute what answering needs besides the weights: called before training, so that mistakes show first."""

    def generate_text(self, interaction: Interaction) -> list[str]:
        """The top beam's text of each row, raw; an empty string where the history has no title."""
        return [texts[0] for texts in self._generate(interaction, all_beams=False)]

    def generate_beams(self, interaction: Interaction) -> list[list[str]]:
        """The texts of all beams of each row, raw, the best first; an empty string where the history has no title."""
        return self._generate(interaction, all_beams=True)

    def _generate(self, interaction: Interaction, all_beams: bool) -> list[list[str]]:
        histories = self.histories(interaction)
        rows = [row for row, history in enumerate(histories) if self.readable(history)]
        texts = [[""] for _ in histories]
        for row, answer in zip(rows, self._search([histories[row] for row in rows], all_beams), strict=True):
            texts[row] = [self._text_of(beam) for beam in (answer.beams if all_beams else [answer])]
        return texts

    def _search(self, histories: Sequence[Sequence[int]], all_beams: bool) -> list[Generation]:
        found = beam_search(
            self.llm,
            [self.prompts.prompt(history) for history in histories],
            eos_token_id=self.backbone.eos_token_id,
            pad_token_id=self.backbone.pad_token_id,
            forbidden_token_ids=self.backbone.forbidden_token_ids,
            num_beams=self.config["num_beams"],
            max_new_tokens=self.config["max_new_tokens"],
            length_penalty=self.config["length_penalty"],
            max_batch_tokens=self.config["generation_batch_tokens"],
            return_beams=all_beams,
            progress=self.show_progress,
        )
        cut = sum(not answer.finished for answer in found)
        if cut > 0.05 * len(found):
            log.warning("%d of %d answers reached max_new_tokens without an end; consider raising it.", cut, len(found))
        return found

    def _text_of(self, answer: Generation) -> str:
        text = self.backbone.decode(answer.token_ids)
        return text.strip().partition("\n")[0] if self.config["first_line"] else text

    @abstractmethod
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Raw scores of all items, larger is better. Returns: [rows, items]; -inf where an item cannot be ranked."""

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the given (row, item) pairs; rows with the same history are answered once. Returns: [rows]."""
        histories = [tuple(history) for history in self.histories(interaction)]
        first = {history: row for row, history in reversed(list(enumerate(histories)))}
        rows = sorted(first.values())
        place = {histories[row]: i for i, row in enumerate(rows)}
        scores = self.full_sort_predict(interaction[torch.tensor(rows)])
        line = torch.tensor([place[history] for history in histories], device=scores.device)
        # RecBole's sampled evaluation puts the scores into a float32 table.
        return scores[line, interaction[self.ITEM_ID].to(scores.device)].float()

    def stage_seed(self, *names: str | int) -> int:
        """Seed of a stage's own generator."""
        return stage_seed(self.config["seed"], *names)
