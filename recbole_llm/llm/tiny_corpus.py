"""The tiny LLM's pre-training corpus: descriptions of items, and prompts whose history predicts the answer.

Both are made from item text alone. The history of a prompt is a walk from item to item by what their texts share, a
category, a brand, a year or a word of the title, and the answer is the walk's end. So the model learns to look up the
newest titles where it has to name an item, which is what fine-tuning on interactions then builds on.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from transformers import PreTrainedTokenizerBase

from recbole_llm.llm.rows import common_prefix

PromptMaker = Callable[[list[int], int], tuple[list[int], list[int]]]
"""``(history, answer) -> (prompt token ids, response token ids)``; items are positions in ``titles``, oldest first.

The prompt starts with BOS and the response ends with EOS, put together from the same pieces as in training and use.
"""

Document = tuple[list[int], int]
"""Token ids, and how many of them at the start are given rather than learned."""

DOCUMENTS_PER_PROMPT = 8  # item documents are short and teach titles; prompts are then about two thirds of all tokens
DOCUMENT_TOKENS = 256  # a longer item document (a description, say) is cut here
ROUND_PROMPTS = 64  # documents are sorted by length and cut into batches within a round of so many prompts
STAY = 0.5  # how often a step of a walk shares what the step before it shared, where that can be
REFINE = 0.7  # how often the next item has to share one value more, where an item does
LOOKED_AT = 200  # items of a value that a step of a walk chooses among, drawn where there are more
WORD = re.compile(r"\w+")


class SharedText:
    """Which items share an attribute value or a word of the title, upper and lower case alike.

    What only one item has links nothing, what all items have tells nothing; in between, the rarer a shared value, the
    likelier a walk goes by it: its weight is the logarithm of items / items with it, its information.

    Args:
        titles: one title per item; an item with an empty one is left out.
        attributes: per item its other values.

    Attributes:
        items: items with a title.
        values: per such item what it shares with some items and not with all.

    Example:
        >>> text = SharedText(["", "Red Sea", "Dead Sea", "Alps"], [[], ["water"], ["water"], ["Rock"]])
        >>> sorted(text.values[1]), text.values[3]
        (['sea', 'water'], [])
        >>> text.links(1, 2), text.links(1, 3)
        (True, False)
        >>> text.walk(2, 1, torch.Generator())
        [1]
    """

    def __init__(self, titles: Sequence[str], attributes: Sequence[Sequence[str]]) -> None:
        self.items = [item for item, title in enumerate(titles) if title.strip()]
        of_item = {item: _values(titles[item], attributes[item]) for item in self.items}
        self._sharing: dict[str, list[int]] = defaultdict(list)
        for item, values in of_item.items():
            for value in values:
                self._sharing[value].append(item)
        weight = {value: math.log(len(self.items) / len(own)) for value, own in self._sharing.items() if len(own) > 1}
        self.values = {item: [v for v in values if weight.get(v, 0) > 0] for item, values in of_item.items()}
        self._known = {item: frozenset(values) for item, values in self.values.items()}
        self._ladder = {item: list(accumulate(weight[v] for v in values)) for item, values in self.values.items()}

    def walk(self, answer: int, length: int, generator: torch.Generator) -> list[int]:
        """A history that leads to an answer: every item shares something with the next, the newest with the answer.

        A step shares what the step after it shares with probability ``STAY``, and time and again with probability
        ``REFINE`` one value more, as the parts of a series do: the more a title says about the next, the sooner a model
        learns to look. An item that shares nothing with any other comes after itself or, as likely, after any item.

        Args:
            answer: where the walk ends, an item with a title.
            length: number of items before it, oldest first.
            generator: source of chance.

        Returns:
            The items before the answer.
        """
        history, item, value = [], answer, ""
        for _ in range(length):
            if not self.values[item]:
                item, value = (item if _chance(generator) < 0.5 else _choice(self.items, generator)), ""
            else:
                if value not in self.values[item] or _chance(generator) >= STAY:
                    value = self._draw_value(item, generator)
                item = self._neighbour(item, value, generator)
            history.append(item)
        return history[::-1]

    def links(self, item: int, other: int) -> bool:
        """Whether two items share something."""
        return not self._known.get(item, frozenset()).isdisjoint(self._known.get(other, ()))

    def _neighbour(self, item: int, value: str, generator: torch.Generator) -> int:
        """Another item with this value, and perhaps with further ones of the item."""
        others = self._sharing[value]
        if len(others) > LOOKED_AT:
            others = [others[place] for place in torch.randint(len(others), (LOOKED_AT,), generator=generator).tolist()]
        others = [other for other in others if other != item] or [item]
        while len(others) > 1 and _chance(generator) < REFINE:
            further = self._draw_value(item, generator)
            nearer = [other for other in others if further in self._known[other]]
            if not nearer:
                break
            others = nearer
        return _choice(others, generator)

    def _draw_value(self, item: int, generator: torch.Generator) -> str:
        ladder = self._ladder[item]
        place = bisect(ladder, _chance(generator) * ladder[-1])
        return self.values[item][min(place, len(ladder) - 1)]


def _values(title: str, attributes: Sequence[str]) -> list[str]:
    return sorted({word.casefold() for word in [*WORD.findall(title), *map(str.strip, attributes)]} - {""})


def document_rounds(
    titles: Sequence[str],
    attributes: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    make_prompt: PromptMaker,
    history_length: int,
    generator: torch.Generator,
) -> Iterator[list[Document]]:
    """The corpus without end, in rounds of ``ROUND_PROMPTS`` prompts and ``DOCUMENTS_PER_PROMPT`` times as many items.

    Item documents and the answers of prompts each pass over the catalogue again and again, in a new random order; a
    prompt's history (1 to ``history_length`` items) is a walk to its answer. The text that opens every prompt is not
    learned: predicting it teaches nothing and would compete with titles as the start of a text.
    """
    shared = SharedText(titles, attributes)
    items = shared.items
    describe = _item_documents(titles, attributes, tokenizer, generator)
    n_given = len(common_prefix([make_prompt([item], item)[0] for item in items[:: 1 + len(items) // 16]]))
    described, answers = _passes(items, generator), _passes(items, generator)
    while True:
        documents = [(describe(next(described)), 1) for _ in range(ROUND_PROMPTS * DOCUMENTS_PER_PROMPT)]
        for _ in range(ROUND_PROMPTS):
            answer, length = next(answers), _randint(1, history_length, generator)
            prompt, response = make_prompt(shared.walk(answer, length, generator), answer)
            documents.append(([*prompt, *response], n_given))
        yield documents


def reading_prompts(
    titles: Sequence[str],
    attributes: Sequence[Sequence[str]],
    make_prompt: PromptMaker,
    history_length: int,
    n_prompts: int,
    generator: torch.Generator,
) -> tuple[list[Document], list[Document]]:
    """Prompts that ask whether a model reads: answers after their own histories, and after those of another answer.

    Returns:
        Two lists of documents with the same histories and the same answers; only the answers count.
    """
    shared = SharedText(titles, attributes)
    draw = _passes(shared.items, generator)
    answers = [next(draw) for _ in range(n_prompts)]
    histories = [shared.walk(answer, _randint(1, history_length, generator), generator) for answer in answers]

    def documents(order: Sequence[int]) -> list[Document]:
        pairs = [make_prompt(histories[place], answer) for place, answer in zip(order, answers, strict=True)]
        return [([*prompt, *response], len(prompt)) for prompt, response in pairs]

    places = list(range(n_prompts))
    return documents(places), documents([*places[1:], 0])


def _passes(items: list[int], generator: torch.Generator) -> Iterator[int]:
    """The items without end: pass after pass, each in a new random order."""
    while True:
        yield from (items[i] for i in torch.randperm(len(items), generator=generator).tolist())


def _item_documents(
    titles: Sequence[str],
    attributes: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    generator: torch.Generator,
) -> Callable[[int], list[int]]:
    """``item -> token ids`` of BOS, title, attributes in a random order, EOS: "Toy Story Comedy, 1995, Animation".

    Nothing stands between title and attributes, and each attribute may come first: so the state after the title's last
    token has to predict all of them. That state is the item's embedding.
    """

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    title_ids = encode(titles)
    values = sorted({value for row in attributes for value in row if value.strip()})
    value_ids = dict(zip(values, encode([f" {value}" for value in values]), strict=True))
    comma = encode([","])[0]

    def describe(item: int) -> list[int]:
        known = [value_ids[value] for value in attributes[item] if value in value_ids]
        document = [tokenizer.bos_token_id, *title_ids[item]]
        for position, chosen in enumerate(torch.randperm(len(known), generator=generator).tolist()):
            document += (comma if position else []) + known[chosen]
        return [*document[: DOCUMENT_TOKENS - 1], tokenizer.eos_token_id]

    return describe


def _randint(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _chance(generator: torch.Generator) -> float:
    """A uniform number in [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _choice(items: Sequence[int], generator: torch.Generator) -> int:
    return items[_randint(0, len(items) - 1, generator)]
