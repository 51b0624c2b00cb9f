"""TTDS: users have codes as well, and all codes follow the LLM while it learns (arXiv 2409.09253, also named ED2)."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_llm.data.item_texts import read_user_texts
from recbole_llm.data.rows import rows_digest
from recbole_llm.hashing import hash_json
from recbole_llm.model.backbones import computes_in_half
from recbole_llm.model.base import TokenPair
from recbole_llm.model.code_stages import CodeStage
from recbole_llm.model.coded import code_names
from recbole_llm.model.semid import SemID
from recbole_llm.model.twins import (
    TrainingInteractions,
    TwinState,
    UserTexts,
    code_states,
    contrast,
    distinct,
    followed_codes,
)
from recbole_llm.prompt import Example
from recbole_llm.prompt.codes import CodePromptEncoder, UserCodePrompts, UserSearchPrompts
from recbole_llm.semantic_ids.rqvae import RQVAE
from recbole_llm.semantic_ids.settings import USER_SEARCH, TwinSettings
from recbole_llm.semantic_ids.table import code_summary, column_scale, standardised, unique_codes
from recbole_llm.settings.config import Config
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

USER_ITEMS = "different items"  # of a user's rows: what its vector is the mean of; codes of other means are made anew
# What user searches are made of; what was tuned on others is tuned anew.
SEARCHES = "each taker of an item once, first histories included"
log = logging.getLogger(__name__)


class TTDS(SemID):
    """SemID with two towers: items and users are named by the codes of two RQ-VAEs, which follow the LLM's states.

    A user's vector is the mean of the vectors of the items in its training rows; who has none is named by the history
    of the row. Between epochs texts are read by the LLM as it is now, the quantisers learn some steps from their
    present codewords, and items and users get the codes that are nearest then, unless too many would collide; the last
    epoch has the codes of the one before it. Beside the answers' loss stand two that draw the LLM's states of codes to
    those of texts. With ``refresh_every: 0``, no user tower and no weights of these losses it is SemID.
    """

    names_codes: ClassVar[str] = "twin"

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.twin = TwinSettings.from_settings(config.final_config_dict)
        self._n_users = int(dataset.user_num)
        self._user_tokens = [str(token) for token in dataset.field2id_token[dataset.uid_field]]
        self.interactions = TrainingInteractions()
        super().__init__(config, dataset)

    # ---- towers and tokens

    @property
    def _n_user_codes(self) -> int:
        """Codewords of a level of users; 0 without their tower."""
        return self.code_settings.codes_per_level(max(self._n_users - 1, 1)) if self.twin.user_tower else 0

    @property
    def _next_prompts(self) -> type[CodePromptEncoder]:
        return UserCodePrompts if self.twin.user_tower else super()._next_prompts

    def _n_counters(self) -> int:
        """See :class:`SemID`; new codes may need more."""
        own = super()._n_counters()
        return 2 * own + 8 if self.twin.refresh_every else own

    def _token_names(self) -> list[str]:
        levels = self.item_codes.codebooks.shape[0]
        self._first_user = len(super()._token_names())
        return [*super()._token_names(), *code_names(levels, self._n_user_codes, 0, ("[", "]"))]

    def _starts(self) -> np.ndarray:
        levels = self.item_codes.codebooks.shape[0]
        return np.pad(super()._starts(), ((0, levels * self._n_user_codes), (0, 0)))

    def _modules_beside(self) -> dict[str, nn.Module]:
        found = super()._modules_beside()
        if self.twin.follows_llm or self.twin.user_tower:
            levels = self.item_codes.codebooks.shape[0]
            self._state = TwinState(self._item_vectors(), self._n_users, levels, self._text_vectors())
            self._place = np.full(self.catalog.n_items, -1, dtype=np.int64)
            self._place[self.items] = np.arange(len(self.items))
            found["twins"] = self._state
        # In a dictionary, so that they stay on the CPU, in float32, wherever the LLM goes.
        self._towers: dict[str, RQVAE] = {}
        if self.twin.refresh_every:
            assert self.item_codes.tower is not None  # settings without it are refused
            self._towers["item_tower"] = self.item_codes.tower
        if self.twin.user_tower:
            (levels, _, width), size = self.item_codes.codebooks.shape, self._state.item_vectors.shape[1]
            generator = torch.Generator().manual_seed(self.stage_seed("user-tower"))
            self._towers["user_tower"] = RQVAE(size, width, levels, self._n_user_codes, generator)
        return {**found, **self._towers}

    def facts(self) -> dict[str, Any]:
        """See :class:`SemID`."""
        users = {"users": self._user_facts()} if self.twin.user_tower else {}
        searches = {"searches among": SEARCHES} if USER_SEARCH in self.code_settings.tasks else {}
        # With autocast, the contrast of states used to be computed in bfloat16.
        halved = self.twin.con_weight and computes_in_half(self.config)
        contrasts = {"contrasts": "float32"} if halved else {}
        return {**super().facts(), "twin": self.twin.facts(), **users, **searches, **contrasts}

    def _user_facts(self) -> dict[str, Any]:
        """What the users' first vectors depend on, besides training rows and the items' vectors."""
        fields = self.twin.user_text_fields
        return {"mean of": USER_ITEMS, **({"texts": hash_json(self.user_texts.texts)} if fields else {})}

    # ---- users

    def prepare_training(self, rows: Any) -> None:
        """See :class:`LLMRecommender`: users get their first codes from their training rows."""
        feat, time = rows.inter_feat, self.config["TIME_FIELD"]
        users, targets = feat[self.USER_ID].tolist(), feat[self.ITEM_ID].tolist()
        times = feat[time].tolist() if time and time in feat else list(range(len(users)))
        named = {item for item, code in enumerate(self.codes) if code is not None}
        listed = f"{time}{self.config['LIST_SUFFIX']}"
        histories, longest, history_times = self.histories(feat), self.config["MAX_ITEM_LIST_LENGTH"], None
        if time and listed in feat and feat[listed].shape == feat[self.ITEM_SEQ].shape:
            history_times = [own[: len(history)] for own, history in zip(feat[listed].tolist(), histories, strict=True)]
        self.interactions = TrainingInteractions.of(users, targets, times, histories, named, longest, history_times)
        if not self.twin.user_tower:
            return
        vectors = self._user_vectors(self.interactions.users)
        source = {"rows": rows_digest(rows), "items": self._source_facts(), "users": self._user_facts()}
        if self.twin.user_text_fields:
            source["texts"] = self._text_stage(self.user_texts.said, "user-vectors").facts()
        seed, n_codes = self.stage_seed("user-codes"), self._n_user_codes
        stage = CodeStage(self.code_settings, lambda: vectors, source, seed, "user-codes", n_codes)
        found = self.stages.run(stage)
        assert found.tower is not None
        self._towers["user_tower"].load_state_dict(found.tower.state_dict())
        self._name_users(vectors, found.codes[:, :-1])
        generator = torch.Generator().manual_seed(self.stage_seed("user-tokens"))
        starts = found.codebooks.reshape(-1, found.codebooks.shape[2])
        self.code_tokens.start_rows(self.llm, self._first_user, starts, generator)

    def _means(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Mean of the vectors of the different items with codes: float32 [histories, d]; zeros if there are none."""
        table = self._state.item_vectors.detach().cpu().numpy()
        found = np.zeros((len(histories), table.shape[1]), dtype=np.float32)
        for row, history in enumerate(histories):
            places = self._place[list(dict.fromkeys(history))]
            if (places >= 0).any():
                found[row] = table[places[places >= 0]].mean(axis=0)
        return found

    def _user_vectors(self, users: Sequence[int]) -> np.ndarray:
        """Vectors of users with training rows, of texts or the means of their items' vectors: float32 [users, d]."""
        found = self._means([self.interactions.items_of[user] for user in users])
        if self._state.user_texts is not None:
            texts = self._state.user_texts.detach().cpu().numpy()[list(users)]
            found = np.where(texts.any(axis=1, keepdims=True), texts, found)
        return found

    @cached_property
    def user_texts(self) -> UserTexts:
        """What ``user_text_fields`` say of the users."""
        return UserTexts(read_user_texts(self._dataset, self.twin.user_text_fields or ()))

    def _text_vectors(self) -> np.ndarray | None:
        """Vectors of users' texts by the untuned LLM: float32 [users, d], zeros without text; None if none are read."""
        if not self.twin.user_text_fields:
            return None
        return self.user_texts.by_user(self.stages.run(self._text_stage(self.user_texts.said, "user-vectors")))

    def _name_users(self, vectors: np.ndarray, codes: np.ndarray) -> None:
        """The users with training rows, in ascending order, have these vectors [n, d] and codes [n, levels]."""
        mean, scale = column_scale(vectors)
        self._state.user_mean.data.copy_(torch.from_numpy(mean))
        self._state.user_scale.data.copy_(torch.from_numpy(scale))
        self._state.user_codes.data[self.interactions.users] = torch.from_numpy(codes).to(self._state.user_codes.device)

    def examples(self, interaction: Interaction) -> list[Example]:
        """See :class:`LLMRecommender`; each names its user: by the training rows, else by the history."""
        found = super().examples(interaction)
        if not self.twin.user_tower:
            return found
        known = self._state.user_codes.detach().cpu().numpy()
        users = interaction[self.USER_ID].tolist() if self.USER_ID in interaction else [0] * len(found)
        codes = known[users].copy()
        new = np.flatnonzero(codes[:, 0] < 0)
        if len(new):
            codes[new] = self._codes_of([found[row].history for row in new])
        return [replace(one, user=self._tokens_of_user(code)) for one, code in zip(found, codes, strict=True)]

    def _codes_of(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Users' codes by histories alone: int64 [histories, levels]."""
        mean, scale = (values.detach().cpu().numpy() for values in (self._state.user_mean, self._state.user_scale))
        points = torch.from_numpy((self._means(histories) - mean) / scale)
        return self._towers["user_tower"].codes(points).numpy()

    def _tokens_of_user(self, code: np.ndarray) -> tuple[int, ...]:
        first = self.backbone.first_code + self._first_user
        return tuple((first + self._n_user_codes * np.arange(len(code)) + code).tolist())

    # ---- training

    def more_examples(self) -> list[TokenPair]:
        """See :class:`SemID`; and for each item the users who took it, up to the last, who is the answer."""
        found = super().more_examples()
        if USER_SEARCH in self.code_settings.tasks:
            encoder = self._encoder_of(UserSearchPrompts, int(self.prompts.max_prompt_tokens or 0))
            assert isinstance(encoder, UserSearchPrompts)
            codes = self._state.user_codes.detach().cpu().numpy()
            for item, users in self._searches:
                *named, last = (self._tokens_of_user(code) for code in codes[users])
                found.append((self._search_prompt(encoder, item, named), encoder.user_response(last)))
        return found

    @staticmethod
    def _search_prompt(encoder: UserSearchPrompts, item: int, named: Sequence[tuple[int, ...]]) -> list[int]:
        """Who took an item; the earliest users are left out where a prompt has no room for all."""
        prompt: list[int] = []
        for start in range(len(named)):
            users = tuple(token for code in named[start:] for token in code)
            prompt = encoder.prompt(Example(history=(), target=item, user=users))
            if len(prompt) <= (encoder.max_prompt_tokens or len(prompt)):
                break
        return prompt

    @property
    def n_more_examples(self) -> int:
        """See :class:`SemID`."""
        return super().n_more_examples + len(self._searches)

    @property
    def _searches(self) -> list[tuple[int, list[int]]]:
        """What is searched for in training: see :attr:`TrainingInteractions.searches`."""
        return self.interactions.searches if USER_SEARCH in self.code_settings.tasks else []

    @property
    def has_side_loss(self) -> bool:
        """See :class:`LLMRecommender`."""
        return bool(self.twin.con_weight or self.twin.rec_weight)

    def side_loss(self, histories: Sequence[Sequence[int]], more: Sequence[int]) -> Tensor | None:
        """See :class:`LLMRecommender`: states of codes against those of texts.

        Items of histories, and users of searches, are contrasted among the different ones of the step; to items that
        an example is about alone, the states are drawn by their square.
        """
        n_single, searches = super().n_more_examples, self._searches
        single = [int(self.items[index % len(self.items)]) for index in more if index < n_single]
        users = [user for index in more if index >= n_single for user in searches[index - n_single][1]]
        shown = [item for history in histories for item in history if self._place[item] >= 0]
        parts = []
        if self.twin.con_weight:
            sets = [self._item_states(distinct(shown)), self._user_states(distinct(users))]
            if (loss := contrast(sets, self.twin.con_tau)) is not None:
                parts.append(self.twin.con_weight * loss)
        if self.twin.rec_weight and single:
            states, texts = self._item_states(distinct(single))
            parts.append(self.twin.rec_weight * (states - texts).square().mean())
        return torch.stack(parts).sum() if parts else None

    def _item_states(self, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The LLM's mean states of items' codes alone, and the vectors of their texts; both float32 [items, d]."""
        texts = self._state.item_vectors[torch.from_numpy(self._place[list(items)])]
        tokens: list[Any] = [self.codes[item] for item in items]
        return code_states(self.llm, tokens), texts.to(self.device)

    def _user_states(self, users: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The LLM's mean states of users' codes alone, and the users' vectors; both float32 [users, d]."""
        codes = self._state.user_codes.detach().cpu().numpy()[list(users)]
        tokens = [self._tokens_of_user(code) for code in codes]
        return code_states(self.llm, tokens), torch.from_numpy(self._user_vectors(users)).to(self.device)

    # ---- codes that follow

    @property
    def changes_examples(self) -> bool:
        """See :class:`LLMRecommender`."""
        return bool(self.twin.refresh_every)

    def end_epoch(self, epoch: int, n_epochs: int) -> dict[str, Any] | None:
        """See :class:`LLMRecommender`: new vectors, quantisers that follow them, and their codes."""
        every = self.twin.refresh_every
        if not every or epoch % every or epoch >= n_epochs:
            return None
        vectors = self._text_encoder(self.llm).encode(self.item_texts(), progress=self.show_progress)
        self._state.item_vectors.data.copy_(torch.from_numpy(vectors))
        table = self.code_table
        codes, found = self._followed("item_tower", standardised(vectors), table[:, :-1], epoch, self._n_counters())
        self.code_tokens.codes.data.copy_(torch.from_numpy(self._token_table(unique_codes(codes))))
        self._read_codes()
        if self.twin.user_tower:
            if self._state.user_texts is not None:
                texts = self._text_encoder(self.llm).encode(self.user_texts.said, progress=self.show_progress)
                self._state.user_texts.data.copy_(torch.from_numpy(self.user_texts.by_user(texts)))
            points = self._user_vectors(self.interactions.users)
            before = self._state.user_codes.detach().cpu().numpy()[self.interactions.users]
            users, told = self._followed("user_tower", standardised(points), before, epoch)
            self._name_users(points, users)
            found |= {"users_changed": told["codes_changed"], "user_collisions": told["collision_rate"]}
        log.info("Codes after epoch %d: %s.", epoch, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        return found

    def _followed(
        self, name: str, points: np.ndarray, before: np.ndarray, epoch: int, counters: int | None = None
    ) -> tuple[np.ndarray, dict[str, float]]:
        """See :func:`followed_codes`."""
        seed, sinkhorn = stage_seed(self.config["seed"], "refresh", name, epoch), self.code_settings.sinkhorn
        return followed_codes(self._towers[name], points, before, self.twin, seed, sinkhorn, counters)

    # ---- what is left in a run's folder

    def _code_facts(self) -> dict[str, Any]:
        if not self.twin.user_tower:
            return super()._code_facts()
        codes = self._state.user_codes.detach().cpu().numpy()
        users = code_summary(unique_codes(codes[codes[:, 0] >= 0]), self._n_user_codes)
        return {**super()._code_facts(), "users": users}

    def write_report(self, folder: Path) -> None:
        """See :class:`SemID`; and ``user_codes.csv`` (user, code)."""
        super().write_report(folder)
        if not self.twin.user_tower:
            return
        with open(folder / "user_codes.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["user_id", "code"])
            for user, code in enumerate(self._state.user_codes.detach().cpu().numpy()):
                if code[0] >= 0:
                    writer.writerow([self._user_tokens[user], self.backbone.decode(self._tokens_of_user(code))])
