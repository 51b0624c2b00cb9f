"""Free answers of an LLM, not restricted to items: beams as tokens and as texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recbole_llm.llm.generation import Generation, beam_search

if TYPE_CHECKING:
    from recbole_llm.model.base import LLMRecommender

MOST_CUT = 0.05  # of the answers, before the log says so
Asked = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt, which may be cut, and the whole history: what an answer depends on besides the weights."""
log = logging.getLogger(__name__)


def answer_keys(prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]]) -> list[Asked]:
    """What tells rows of other answers apart.

    Args:
        prompts: token ids of each row's prompt; None where it has none.
        histories: item ids of each row's history.
    """
    return [(tuple(prompt or ()), tuple(own)) for prompt, own in zip(prompts, histories, strict=True)]


class FreeAnswers:
    """Searches for the answers of a recommender's LLM as it stands.

    Args:
        model: the recommender, whose LLM may not be loaded before it is asked.
    """

    def __init__(self, model: LLMRecommender) -> None:
        self._model = model
        self._num_beams: int | None = None
        self._kept: dict[Asked, str] | None = None

    def best(self, prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]]) -> list[str]:
        """Raw text of the top beam of each row; in :meth:`kept`, each is searched for once.

        Args:
            prompts: token ids of each row's prompt; None where it has none, and the answer is empty.
            histories: item ids of each row's history.
        """
        if self._kept is None:
            return [texts[0] for texts in self._texts(prompts, histories, all_beams=False)]
        kept = self._kept
        keys = answer_keys(prompts, histories)
        new = {key: row for row, key in enumerate(keys) if key not in kept}
        if rows := list(new.values()):
            found = self._texts([prompts[row] for row in rows], [histories[row] for row in rows], all_beams=False)
            kept.update((key, texts[0]) for key, texts in zip(new, found, strict=True))
        return [kept[key] for key in keys]

    def beams(self, prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]]) -> list[list[str]]:
        """Raw texts of all beams of each row, the best first; arguments as of :meth:`best`."""
        return self._texts(prompts, histories, all_beams=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Answer each row once for the duration of the context, in which the weights must not change."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    @contextmanager
    def with_beams(self, num_beams: int | None) -> Iterator[None]:
        """Search with another number of beams for the duration of the context; None is the run's own number."""
        before, self._num_beams = self._num_beams, num_beams
        try:
            yield
        finally:
            self._num_beams = before

    def search(
        self,
        prompts: Sequence[list[int]],
        histories: Sequence[Sequence[int]],
        num_beams: int,
        length_penalty: float = 1.0,
        all_beams: bool = False,
    ) -> list[Generation]:
        """Answers to prompts, as tokens.

        Args:
            prompts: token ids.
            histories: histories of the same rows, for what conditions the LLM on them.
            num_beams: number of beams of the search; 1 is greedy.
            length_penalty: exponent of the length in a beam's score.
            all_beams: whether each answer has the others beside the best.
        """
        model = self._model
        with model.autocast():
            return beam_search(
                model.llm,
                prompts,
                eos_token_id=model.backbone.eos_token_id,
                pad_token_id=model.backbone.pad_token_id,
                forbidden_token_ids=model.backbone.forbidden_token_ids,
                num_beams=num_beams,
                max_new_tokens=model.generation.max_new_tokens,
                length_penalty=length_penalty,
                max_batch_tokens=model.generation_budget,
                return_beams=all_beams,
                row_inputs=model.row_inputs(histories),
                progress=model.show_progress,
                keep=model.keep,
            )

    def _texts(
        self, prompts: Sequence[list[int] | None], histories: Sequence[Sequence[int]], all_beams: bool
    ) -> list[list[str]]:
        """Raw texts of the beams of each row, all of them or the best; an empty one where there is no prompt."""
        asked = {row: prompt for row, prompt in enumerate(prompts) if prompt is not None}
        texts = [[""] for _ in histories]
        found = self._search(list(asked.values()), [histories[row] for row in asked], all_beams)
        for row, answer in zip(asked, found, strict=True):
            texts[row] = [self._text_of(beam) for beam in (answer.beams if all_beams else [answer])]
        return texts

    def _search(
        self, prompts: Sequence[list[int]], histories: Sequence[Sequence[int]], all_beams: bool
    ) -> list[Generation]:
        settings = self._model.generation
        num_beams = self._num_beams or settings.num_beams
        found = self.search(prompts, histories, num_beams, settings.length_penalty, all_beams)
        cut = sum(not answer.finished for answer in found)
        if cut > MOST_CUT * len(found):
            log.warning("%d of %d answers were cut off at max_new_tokens; consider raising it", cut, len(found))
        return found

    def _text_of(self, answer: Generation) -> str:
        text = self._model.backbone.decode(answer.token_ids)
        return text.strip().partition("\n")[0] if self._model.generation.first_line else text
