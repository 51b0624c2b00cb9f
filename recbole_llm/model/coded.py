"""The base of recommenders that name items by codes: the codes, their tokens, their report."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.adapter import Adapter, AdapterWithModules
from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_arrays
from recbole_llm.llm.code_tokens import CodedBackbone, CodeTokens
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.model.backbones import weight_facts
from recbole_llm.model.code_stages import CodeStage, ItemCodes, TextVectorStage, vectors_digest
from recbole_llm.model.grounded import GroundedRecommender
from recbole_llm.model.item_vectors import ItemVectors
from recbole_llm.prompt.codes import CodePromptEncoder
from recbole_llm.report.code_plot import plot_codes
from recbole_llm.semantic_ids.settings import CodeSettings
from recbole_llm.semantic_ids.table import code_summary
from recbole_llm.settings.code_checks import check_codes
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

LETTERS = "abcdefghi"  # of the levels of a code; the one after the last level is the counter's
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


class CodedRecommender(GroundedRecommender):
    """Names every item with a title by a code of a few tokens, which join the LLM's vocabulary.

    A quantiser names items of alike vectors by codes that begin alike, and a counter behind them makes codes unique.
    The tokens' rows learn with the adapter and are kept in its folder, as are the codes.

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
        self._dataset = dataset
        super().__init__(config, dataset)
        self.code_tokens.attach(self.llm)

    @classmethod
    def keeps_items(cls, config: Config) -> bool:
        """See :class:`LLMRecommender`: codes have tokens that were learned."""
        return True

    @classmethod
    def borrows(cls, config: Config) -> bool:
        """See :class:`LLMRecommender`: codes may be made from another recommender's vectors."""
        return super().borrows(config) or config["sid_source"] == "id"

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
            shown_items=self.shown_items,
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

    @cached_property
    def _tuned_vectors(self) -> ItemVectors:
        """Vectors by the LLM, tuned on views of items apart from this one."""
        return ItemVectors.beside(self, self._dataset)

    def _source_facts(self) -> dict[str, Any]:
        """What the items' vectors depend on."""
        if self.code_settings.source == "llmemb":
            return {"vectors": self._tuned_vectors.fingerprint}
        if self.code_settings.source == "id":
            vectors = self.auxiliary.item_vectors()[self.items]
            return {"recommender": self.auxiliary.fingerprint, "vectors": vectors_digest(vectors)}
        return {"text": self._text_stage(self.item_texts()).facts()}

    def _item_vectors(self) -> np.ndarray:
        """A vector for each of :attr:`items`. Returns: float32 [n, d]."""
        if self.code_settings.source == "llmemb":
            found: np.ndarray = self._tuned_vectors.table[self.items]
            return found
        if self.code_settings.source == "id":
            return self.auxiliary.item_vectors()[self.items]
        return self.stages.run(self._text_stage(self.item_texts()))

    def _text_stage(self, texts: list[str], name: str = "item-vectors") -> TextVectorStage:
        llm = {"llm": self.backbone.fingerprint, **weight_facts(self.config)}
        return TextVectorStage(self._text_encoder(self.backbone.model), texts, llm, self.show_progress, name)

    def _text_encoder(self, llm: nn.Module) -> TextEncoder:
        return self.text_encoder(llm, pooling="mean")

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
        """The codes that were loaded with the weights are those of the items.

        Raises:
            InputError: two items share one, or a token is none of the vocabulary's.
        """
        table = self.code_tokens.codes.detach().cpu().numpy()
        own = table[self.items]
        known = (own >= 0) & (own < len(self.backbone.code_names))
        if not known.all() or len(np.unique(own, axis=0)) < len(own):
            raise InputError(
                "the codes beside the weights are not one for each item of this catalogue; train the run again",
                kind="file",
            )
        self._set_codes(table)

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
        levels: levels of codes.
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
