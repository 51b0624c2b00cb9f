"""The offline tiny LLM of a catalogue and of one recommender's prompts, built on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recbole_llm.data.candidates import CandidatePool
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.llm.settings import TinyLLMConfig
from recbole_llm.llm.tiny import build_tiny_llm
from recbole_llm.llm.tiny_corpus import PromptMaker, SharedText
from recbole_llm.model.rows import PromptKind, TokenPair
from recbole_llm.prompt import Example
from recbole_llm.prompt.settings import PromptSettings
from recbole_llm.settings.config import Config
from recbole_llm.stages import UNFINISHED, Stage

CORPUS = "walks by shared text"  # what prompts are made of; LLMs that learned from others are rebuilt

Invent = Callable[[Sequence[int], int], Example]
"""Makes an example of a history and its answer, made from item text alone: whatever else it needs is so too."""
Inventor = Callable[[ItemCatalog, int, np.random.Generator], Invent]
"""Gives the former for a catalogue, the number of candidates in a prompt, and the source of chance."""


def invent_titles(catalog: ItemCatalog, n_candidates: int, generator: np.random.Generator) -> Invent:
    """Examples whose answer is a title, among candidates where prompts list some."""
    draw = CandidatePool(catalog).draw

    def invent(history: Sequence[int], answer: int) -> Example:
        listed = draw(answer, history, n_candidates, generator) if n_candidates else ()
        return Example(history, answer, candidates=listed)

    return invent


def invent_clicks(catalog: ItemCatalog, n_candidates: int, generator: np.random.Generator) -> Invent:
    """Examples of titles liked or not: the asked one as those of the history that share something with it.

    Whether it is liked is random, and so are the likes of titles that share nothing with it.
    """
    shared = SharedText([title or "" for title in catalog.titles], catalog.attributes)

    def invent(history: Sequence[int], answer: int) -> Example:
        *likes, liked = (generator.random(len(history) + 1) < 0.5).tolist()
        likes = [liked if shared.links(item, answer) else like for item, like in zip(history, likes, strict=True)]
        return Example(history, answer, likes=likes, liked=liked)

    return invent


class TinyLLMStage(Stage[Path]):
    """A small LLM made from item texts and prompts alone; its result is the folder that it loads from.

    Args:
        config: the resolved config.
        catalog: the items.
        prompts: the prompts that the LLM is to read and answer.
        inventor: makes the examples that they show.
        history_length: items of a history, at most.
        device: where it is trained.
    """

    name = "tiny-llm"

    def __init__(
        self,
        config: Config,
        catalog: ItemCatalog,
        prompts: PromptKind,
        inventor: Inventor,
        history_length: int,
        device: torch.device,
    ) -> None:
        self.settings = TinyLLMConfig.from_settings(config.final_config_dict)
        self._config, self._catalog, self._prompts, self._inventor = config, catalog, prompts, inventor
        self._history_length, self._device = history_length, device
        self._titles = [title or "" for title in catalog.titles]

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        n_candidates, limit = self._prompts.n_candidates, self._config["max_prompt_tokens"]
        return {
            "settings": asdict(self.settings),
            "corpus": CORPUS,
            "titles": self._titles,
            "attributes": self._catalog.attributes,
            "layout": self._prompts.layout.facts(),
            **({"candidates": n_candidates} if n_candidates else {}),
            "history_length": self._history_length,
            # An LLM of prompts of the usual length says nothing of it.
            **({"max_prompt_tokens": limit} if limit != PromptSettings.max_prompt_tokens else {}),
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        build_tiny_llm(
            folder,
            titles=self._titles,
            attributes=self._catalog.attributes,
            template_texts=list(self._prompts.layout.texts),
            compose=self._compose,
            history_length=self._history_length,
            config=self.settings,
            device=self._device,
            progress=bool(self._config["show_progress"]),
            states=folder / UNFINISHED / "pre-training",
            minutes=self._config["checkpoint_minutes"],
        )

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`."""
        return folder

    def _compose(self, tokenizer: PreTrainedTokenizerBase) -> PromptMaker:
        """What makes the prompts and responses that the LLM reads in training."""
        prompts = self._prompts.encode_with(
            tokenizer,
            self._catalog,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            max_prompt_tokens=self._config["max_prompt_tokens"],
        )
        generator = np.random.default_rng(self._config["tiny_seed"])
        invent = self._inventor(self._catalog, self._prompts.n_candidates, generator)

        def make(history: list[int], answer: int) -> TokenPair:
            example = invent(history, answer)
            return prompts.prompt(example), prompts.response(example)

        return make
