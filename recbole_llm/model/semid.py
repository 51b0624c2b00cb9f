"""SemID: items are named by codes of their meaning, and the next code is generated (TIGER 2305.05065, LC-Rec)."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.adapter import Adapter, AdapterWithModules
from recbole_llm.grounding import Grounding, PromptedRows, Ranking
from recbole_llm.grounding.titles import TitleGrounding
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.code_tokens import CodedBackbone, CodeTokens
from recbole_llm.llm.constrained import search_titles
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.model.bigrec import find_grounding
from recbole_llm.model.code_stages import CodeStage, ItemCodes, TextVectorStage, vectors_digest
from recbole_llm.prompt import Example
from recbole_llm.prompt.codes import TASKS, CodePromptEncoder
from recbole_llm.report.code_plot import plot_codes
from recbole_llm.semantic_ids.settings import CodeSettings
from recbole_llm.semantic_ids.table import code_summary
from recbole_llm.settings.code_checks import check_codes
from recbole_llm.settings.config import Config
from recbole_llm.stages import write_json

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

LETTERS = "abcdefghi"  # of the levels of a code; the one behind the last level is the counter's
log = logging.getLogger(__name__)


class CodedAdapter(AdapterWithModules):
    """An adapter beside the rows of code tokens and the codes; says so when it has loaded others.

    Args:
        inner: the adapter of the LLM's own weights.
        modules: by name.
        changed: called after weights were loaded.
    """

    def __init__(self, inner: Adapter, modules: Mapping[str, nn.Module], changed: Callable[[], None]) -> None:
        super().__init__(inner, modules)
        self._changed = changed

    def load_trainable_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See :class:`Adapter`."""
        super().load_trainable_state(model, state)
        self._changed()

    def _load_weights(self, model: nn.Module, folder: Path) -> None:
        super()._load_weights(model, folder)
        self._changed()


class SemID(LLMRecommender):
    """Every item has a code of a few tokens, made of a vector of its text; a history of codes is answered with a code.

    A quantiser names items of alike vectors by codes that begin alike, and a counter behind them makes codes unique.
    The LLM's vocabulary grows by their tokens, whose rows learn with the adapter and are kept in its folder. Answers
    are searched for among the catalogue's codes (``grounding: constrained``), or all are scored (``likelihood``).
    Every item with a title is named, also where several share one.

    Attributes:
        items: int64, the items that have codes.
        item_codes: what the quantiser made of them.
        codes: the token ids of each item's code, None where it has none.
        code_tokens: the tokens' rows, and the codes as they are now.
    """

    names_codes: ClassVar[str] = "static"
    """That items are codes in prompts and answers, ``"twin"`` if users are as well and codes change."""
    prompts: CodePromptEncoder
    backbone: CodedBackbone

    def __init__(self, config: Config, dataset: Dataset) -> None:
        check_codes(type(self).__name__, config, is_twin=self.names_codes == "twin")
        self.code_settings = CodeSettings.from_settings(config.final_config_dict)
        super().__init__(config, dataset)
        self.code_tokens.attach(self.llm)

    # ---- codes

    def _make_prompts(self, max_prompt_tokens: int) -> CodePromptEncoder:
        if not isinstance(self.backbone, CodedBackbone):
            self._name_items()
        return self._encoder_of(self._next_prompts, max_prompt_tokens)

    @property
    def _next_prompts(self) -> type[CodePromptEncoder]:
        """Prompts that ask for the next item."""
        return CodePromptEncoder

    def _encoder_of(self, kind: type[CodePromptEncoder], max_prompt_tokens: int) -> CodePromptEncoder:
        names = dict(enumerate(self.backbone.code_names, start=self.backbone.first_code))
        found = self.prompt_kind.encode_with(
            self.backbone.tokenizer,
            self.catalog,
            encoder=kind,
            codes=self.codes,
            code_names=names,
            bos_token_id=self.backbone.bos_token_id,
            eos_token_id=self.backbone.eos_token_id,
            max_prompt_tokens=max_prompt_tokens,
        )
        assert isinstance(found, CodePromptEncoder)
        return found

    def _name_items(self) -> None:
        """Give every item with a title its code, and the LLM's vocabulary the tokens."""
        self.items = np.flatnonzero(self.catalog.has_title)
        self.item_codes = self._make_codes()
        levels, n_codes, _ = self.item_codes.codebooks.shape
        self.backbone = CodedBackbone.of(self.backbone, self._token_names())
        self.codes: list[list[int] | None] = [None] * self.catalog.n_items
        self._set_codes(self._token_table(self.item_codes.codes))
        found = self.item_codes.summary
        log.info(
            "Codes of %d items: %d x %d codewords, collision rate %.4f before the counter, which has %d values; used: "
            "%s of each level.",
            *(len(self.items), levels, n_codes, found["collision_rate"], found["counters"]),
            ", ".join(map(str, found["used"])),
        )

    def _token_names(self) -> list[str]:
        """How the code tokens are written, in their order."""
        levels, n_codes, _ = self.item_codes.codebooks.shape
        return code_names(levels, n_codes, self._n_counters())

    def _starts(self) -> np.ndarray:
        """Where the rows of the tokens begin: float32 [tokens, width], zeros for no codeword."""
        starts = self.item_codes.codebooks.reshape(-1, self.item_codes.codebooks.shape[2])
        return np.pad(starts, ((0, self._n_counters()), (0, 0)))

    def _modules_beside(self) -> dict[str, nn.Module]:
        """What learns, or is kept, beside the LLM."""
        table = self._token_table(self.item_codes.codes)
        generator = torch.Generator().manual_seed(self.stage_seed("code-tokens"))
        first = self.backbone.first_code
        self.code_tokens = CodeTokens(self.backbone.model, first, self._starts(), table, generator).to(self.device)
        return {"code_tokens": self.code_tokens}

    def _n_counters(self) -> int:
        """Values of the counter that there are tokens for."""
        return int(self.item_codes.codes[:, -1].max()) + 1

    def _make_codes(self) -> ItemCodes:
        seed = self.stage_seed("item-codes")
        return self.stages.run(CodeStage(self.code_settings, self._item_vectors, self._source_facts(), seed))

    def _source_facts(self) -> dict[str, Any]:
        """What the items' vectors depend on."""
        if self.code_settings.source == "id":
            vectors = self.auxiliary.item_vectors()[self.items]
            return {"recommender": self.auxiliary.fingerprint, "vectors": vectors_digest(vectors)}
        return {"text": self._text_stage().facts()}

    def _item_vectors(self) -> np.ndarray:
        """A vector for each of :attr:`items`. Returns: float32 [n, d]."""
        if self.code_settings.source == "id":
            return self.auxiliary.item_vectors()[self.items]
        return self.stages.run(self._text_stage())

    def _text_stage(self) -> TextVectorStage:
        llm = {"llm": self.backbone.fingerprint, "dtype": self.config["llm_dtype"], "quant": self.config["quant"]}
        return TextVectorStage(self._text_encoder(self.backbone.model), self.item_texts(), llm, self.show_progress)

    def _text_encoder(self, llm: nn.Module) -> TextEncoder:
        budget = self.generation.generation_batch_tokens
        return TextEncoder(llm, self.backbone.tokenizer, pooling="mean", max_batch_tokens=budget)

    def item_texts(self) -> list[str]:
        """What is known of each of :attr:`items` in words: its title and ``item_text_fields``."""
        catalog = self.catalog
        return [" ".join([catalog.titles[item] or "", *catalog.attributes[item]]).strip() for item in self.items]

    def _token_table(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n, levels + 1] of :attr:`items` as tokens, from 0 on: int64 [all items, levels + 1]; -1 without."""
        levels, n_codes, _ = self.item_codes.codebooks.shape
        table = np.full((self.catalog.n_items, levels + 1), -1, dtype=np.int64)
        table[self.items] = codes + n_codes * np.arange(levels + 1)
        return table

    def _set_codes(self, table: np.ndarray) -> None:
        """Items are named by these tokens from now on, in prompts and answers."""
        first = self.backbone.first_code
        rows = (table + first).tolist()
        self.codes[:] = [row if row[0] >= first else None for row in rows]
        self.__dict__.pop("grounding", None)

    def _read_codes(self) -> None:
        """The codes that were loaded with the weights are those of the items."""
        self._set_codes(self.code_tokens.codes.detach().cpu().numpy())

    @property
    def code_table(self) -> np.ndarray:
        """The codes of :attr:`items` as they are now: int64 [n, levels + 1]."""
        levels, n_codes, _ = self.item_codes.codebooks.shape
        own = self.code_tokens.codes.detach().cpu().numpy()[self.items]
        table: np.ndarray = own - n_codes * np.arange(levels + 1)
        return table

    def _make_adapter(self) -> Adapter:
        return CodedAdapter(super()._make_adapter(), self._modules_beside(), self._read_codes)

    def facts(self) -> dict[str, Any]:
        """See :class:`LLMRecommender`."""
        codes = self._token_table(self.item_codes.codes)
        return {**super().facts(), "codes": hash_arrays(codes), "tasks": list(self.code_settings.tasks)}

    # ---- training

    def more_examples(self) -> list[TokenPair]:
        """See :class:`LLMRecommender`: of the tasks beside the next item, each item once."""
        limit = int(self.prompts.max_prompt_tokens or 0)
        found: list[TokenPair] = []
        for task in self.code_settings.tasks:
            if task in TASKS:
                encoder = self._encoder_of(TASKS[task], limit)
                examples = [Example(history=(), target=int(item)) for item in self.items]
                found += [(encoder.prompt(example), encoder.response(example)) for example in examples]
        return found

    # ---- answering

    @property
    def n_answers(self) -> int:
        """Items with a code."""
        return len(self.items)

    @cached_property
    def grounding(self) -> Grounding:
        """How items are ranked, with the codes as they are now."""
        return find_grounding(self.config["grounding"])(self, self.config.final_config_dict)

    def _longest_answer(self) -> int:
        return self.grounding.longest_answer

    def fast_paths(self) -> set[FastPath]:
        """See :class:`LLMRecommender`."""
        return super().fast_paths() | self.grounding.fast_paths

    def prepare(self) -> None:
        """See :class:`LLMRecommender`."""
        super().prepare()
        self.grounding.prepare()
        if self.grounding.declared.lm_weight < 1:
            _ = self.auxiliary

    def rows(self, interaction: Interaction) -> PromptedRows:
        """Histories and prompts, and another recommender's scores where they are mixed in."""
        self.readable_rows(self.histories(interaction))
        mixed = self.grounding.declared.lm_weight < 1
        scores = self.auxiliary.scores(interaction) if mixed else None
        return PromptedRows(self.histories(interaction), self.row_prompts(interaction), scores)

    def rank(self, interaction: Interaction, k: int, targets: Tensor | None = None) -> Ranking:
        """See :class:`LLMRecommender`."""
        return self.grounding.rank(self.rows(interaction), self._targets(interaction, targets), k)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """See :class:`LLMRecommender`; -inf for an item without a code, or that no beam names."""
        return self.grounding.scores(self.rows(interaction)).to(self.device)

    def _texts(
        self, prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]], all_beams: bool
    ) -> list[list[str]]:
        """The codes of the beams, written by their names."""
        rows = PromptedRows(histories, prompts)
        texts = [[""] for _ in histories]
        grounding = self.grounding
        assert isinstance(grounding, TitleGrounding)
        found = search_titles(
            self.llm,
            rows.prompt_ids,
            grounding.trie,
            pad_token_id=self.backbone.pad_token_id,
            num_beams=self.generation.num_beams,
            row_inputs=self.row_inputs(rows.take(rows.prompted).histories),
            max_batch_tokens=self.generation.generation_batch_tokens,
            progress=self.show_progress,
        )
        for row, beams in zip(rows.prompted.tolist(), found, strict=True):
            named = [self.backbone.decode(beam.token_ids) for beam in beams]
            texts[row] = named if all_beams else named[:1]
        return texts

    # ---- what a grounding asks for

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt, at most."""
        return int(self.prompts.max_prompt_tokens or 0)

    @property
    def item_embeddings(self) -> np.ndarray:
        """There are none: codes are not grounded by distances."""
        raise ValueError("codes are searched for or scored; there are no embeddings to compare")

    def embed_answers(self, rows: PromptedRows) -> np.ndarray:
        """There are none; see :attr:`item_embeddings`."""
        return self.item_embeddings

    def response(self, item: int) -> list[int]:
        """Token ids of the answer that names an item."""
        return self.prompts.item_response(item)

    # ---- what is left in a run's folder

    def _code_facts(self) -> dict[str, Any]:
        """What there is to tell of the codes as they are now."""
        return {**self.item_codes.summary, **code_summary(self.code_table, self.item_codes.codebooks.shape[1])}

    def write_report(self, folder: Path) -> None:
        """See :class:`LLMRecommender`: ``codes.csv``, ``codes.json`` (collisions, use) and ``codes.png`` (the tree)."""
        table, n_codes, summary = self.code_table, self.item_codes.codebooks.shape[1], self._code_facts()
        write_json(folder / "codes.json", summary)
        with open(folder / "codes.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["item_id", "code"])
            for item in self.items.tolist():
                writer.writerow([self.catalog.tokens[item], self.backbone.decode(self.codes[item] or [])])
        title = f"{folder.name}: {len(table):,} items, collision rate {summary['collision_rate']:.3f}"
        plot_codes(table[:, :-1], n_codes, folder / "codes.png", title=title)


def code_names(levels: int, n_codes: int, n_counters: int, brackets: tuple[str, str] = ("<", ">")) -> list[str]:
    """How code tokens are written: a letter for the level, and a number.

    Args:
        levels: of codes.
        n_codes: codewords of a level.
        n_counters: values of the counter; 0 for codes without one.
        brackets: around a name.

    Example:
        >>> code_names(levels=2, n_codes=2, n_counters=1)
        ['<a_0>', '<a_1>', '<b_0>', '<b_1>', '<c_0>']
    """
    sizes = [n_codes] * levels + ([n_counters] if n_counters else [])
    start, end = brackets
    return [f"{start}{LETTERS[level]}_{code}{end}" for level, size in enumerate(sizes) for code in range(size)]
