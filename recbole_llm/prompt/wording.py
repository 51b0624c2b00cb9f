"""``Wording``: the words of a domain and the sentences of its prompts."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.errors import InputError
from recbole_llm.prompt.layout import Layout, slot_mark
from recbole_llm.property_files import find_properties, load_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = ("item", "items", "verb")
_TITLE_SLOTS = {
    "input": ("history",),
    "candidates": ("candidates",),
    "click_input": ("liked", "disliked", "target"),
    "summary_input": ("history",),
    "code_input": ("history",),
    "code_to_title": ("code",),
    "title_to_code": ("title",),
    "user_input": ("user", "history"),
    "user_search": ("code", "user"),
}


@dataclass(frozen=True)
class Wording:
    """The wording of one domain's prompts.

    Sentences may use the slots `{item}`, `{items}` and `{verb}`; `input` has the slot `{history}` too, exactly once.

    Attributes:
        item: One catalogue item, e.g. movie.
        items: Several of them.
        verb: What a user does with them, as a past participle, e.g. watched.
        preamble: Opening sentence.
        instruction: The task.
        input: The sentence that holds the history.
        candidates: The sentence that follows it where a prompt lists candidates; its slot is `{candidates}`.
        click_preamble: As `preamble`, for the yes/no task.
        click_instruction: As `instruction`, for the yes/no task.
        click_input: As `input`, for the yes/no task, with the slots `{liked}`, `{disliked}` and `{target}`, each
            exactly once.
        summary_preamble: As `preamble`, where the user is asked for in one token.
        summary_instruction: As `instruction`, for the same.
        summary_input: As `input`, for the same; the history begins a line of its own.
        code_preamble: As `preamble`, where items are named by codes.
        code_instruction: As `instruction`, where items are named by codes.
        code_input: As `input`, where items are named by codes.
        code_to_title: Asks for the title of an item by its code, the slot `{code}`.
        title_to_code: Asks for the code of an item by its title, the slot `{title}`.
        user_input: As `code_input`, where users have codes, too, the slot `{user}`.
        user_search: Asks for one more user of an item, the slots `{code}` and `{user}`.

    Example:
        >>> Wording.of_domain("movie").verb
        'watched'
        >>> Wording(item="song", items="songs", verb="played").preamble
        'You know {items} well and answer with the name of one {item} in double quotes.'
    """

    item: str
    items: str
    verb: str
    preamble: str = "You know {items} well and answer with the name of one {item} in double quotes."
    instruction: str = "Here are the {items} a user has {verb}, oldest first. Name one new {item} this user would like."
    input: str = "So far this user has {verb} these {items}: {history}"
    candidates: str = "The new {item} is one of these {items}: {candidates}"
    click_preamble: str = "You know {items} well and answer with Yes or No."
    click_instruction: str = (
        "Here are {items} that a user has {verb} and liked, and others the same user did not like, oldest first. "
        "Judge whether this user would like one more {item}. Answer Yes or No."
    )
    click_input: str = "Liked: {liked}\nNot liked: {disliked}\nWould this user like the {item} {target}?"
    summary_preamble: str = "You know {items} and the people who have {verb} them."
    summary_instruction: str = "Sum up in a single token what the user with this history of {items} likes."
    summary_input: str = "What this user has {verb}, oldest first:{history}"
    code_preamble: str = "You know {items} by their codes."
    code_instruction: str = (
        "Here are the codes of the {items} a user has {verb}, oldest first. Give the code of one new {item} this user "
        "would like."
    )
    code_input: str = "So far this user has {verb}: {history}"
    code_to_title: str = "Which {item} has the code {code}? Give its name in double quotes."
    user_input: str = "The user {user} has {verb}: {history}"
    user_search: str = "The {item} {code} was {verb} by {user} and then by which user?"
    title_to_code: str = "Which code does this {item} have: {title}"

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise InputError(f"{field.name} must be text, not {getattr(self, field.name)!r}", about=field.name)
        for name in [field.name for field in fields(self) if field.name not in _WORDS]:
            used, own = _slots(getattr(self, name), name), _TITLE_SLOTS.get(name, ())
            allowed = [*_WORDS, *own]
            if unknown := sorted(set(used) - set(allowed)):
                raise InputError(
                    f"{name} has an unknown slot {{{unknown[0]}}}; slots: {', '.join(allowed)}",
                    kind="unknown",
                    about=name,
                )
            for slot in own:
                if used.count(slot) != 1:
                    raise InputError(f"{name} must hold the slot {{{slot}}} exactly once", about=name)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Wording:
        """Read the wording from a YAML file, or take it from a mapping with the same keys.

        Raises:
            InputError: The file cannot be read, or a key is missing, unknown or not text.
        """
        where = "prompt template" if isinstance(source, Mapping) else f"prompt template {source}"
        wording = source if isinstance(source, Mapping) else load_yaml(source, "prompt template", about="")
        known = [field.name for field in fields(cls)]
        if unknown := [str(key) for key in wording if key not in known]:
            raise InputError(
                f"{where}: unknown key {unknown[0]!r}; keys: {', '.join(known)}", kind="unknown", about=unknown[0]
            )
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in wording]:
            raise InputError(
                f"{where}: key {missing[0]!r} is missing; it needs {', '.join(required)}",
                kind="missing",
                about=missing[0],
            )
        try:
            return cls(**wording)
        except InputError as error:
            raise InputError(f"{where}: {error}", kind=error.kind, about=error.key) from None

    @classmethod
    def of_domain(cls, domain: str) -> Wording:
        """The wording of one of the domains in `properties/prompt`, or of a YAML file of the user's own.

        Raises:
            InputError: There is neither, or the file is no template.
        """
        folder = find_properties() / "prompt"
        for file in (Path(domain), folder / f"{domain}.yaml"):
            if file.suffix == ".yaml" and file.is_file():
                return cls.load(file)
        if Path(domain).suffix == ".yaml":
            raise InputError("domain", f"there is no file {domain}; give a .yaml file that is there", kind="file")
        domains = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(
            f"domain: there is no wording for '{domain}'; choose one of {domains}, or give a .yaml file", kind="unknown"
        )

    def next_item(
        self, style: str = "alpaca", tokenizer: PreTrainedTokenizerBase | None = None, *, candidates: bool = False
    ) -> Layout:
        """The layout of a prompt that asks for the next item, with the slot `history`.

        Args:
            style: See :meth:`Layout.of_blocks`, as for the next.
            tokenizer: A Hugging Face tokenizer, for `chat` only.
            candidates: Whether the sentence `candidates` follows the input, on a line of its own, with its slot.

        Raises:
            InputError: The style is unknown, or the tokenizer has no usable chat template.
        """
        holding = ["input", "candidates"] if candidates else ["input"]
        return self._layout(["preamble", "instruction"], holding, style, tokenizer)

    def without_history(self, style: str = "alpaca", tokenizer: PreTrainedTokenizerBase | None = None) -> Layout:
        """The layout of :meth:`next_item` without its input: the instruction alone, no slot.

        Args and Raises: as for :meth:`next_item`.
        """
        return self._layout(["preamble", "instruction"], [], style, tokenizer)

    def click(self, style: str = "alpaca", tokenizer: PreTrainedTokenizerBase | None = None) -> Layout:
        """The layout of a yes/no question, with the slots `liked`, `disliked` and `target`.

        Args and Raises: as for :meth:`next_item`.
        """
        return self._layout(["click_preamble", "click_instruction"], ["click_input"], style, tokenizer)

    def summary(self, style: str = "alpaca", tokenizer: PreTrainedTokenizerBase | None = None) -> Layout:
        """The layout of a prompt that asks for a user in one token, with the slot `history`.

        Args and Raises: as for :meth:`next_item`.
        """
        return self._layout(["summary_preamble", "summary_instruction"], ["summary_input"], style, tokenizer)

    def of_codes(
        self, sentence: str, style: str = "alpaca", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Layout:
        """The layout of a prompt in which items are named by codes.

        Args:
            sentence: Name of the one that holds the slots: `code_input`, or a question about one item.
            style: As for :meth:`next_item`, and so is the next.
            tokenizer: See there.

        Raises:
            InputError: As for :meth:`next_item`.
        """
        asks_for_next = sentence in ("code_input", "user_input")
        opening = ["code_preamble", "code_instruction"] if asks_for_next else ["code_preamble", ""]
        return self._layout(opening, [sentence], style, tokenizer)

    def _layout(
        self, opening: list[str], holding: list[str], style: str, tokenizer: PreTrainedTokenizerBase | None
    ) -> Layout:
        """The sentences of these names in a style; those of `holding` share a block and have slots for titles."""
        words = {word: getattr(self, word) for word in _WORDS}
        marks = {slot: slot_mark(slot) for name in holding for slot in _TITLE_SLOTS[name]}
        blocks = [getattr(self, name).format(**words) if name else "" for name in opening]
        blocks.append("\n".join(getattr(self, name).format(**words, **marks) for name in holding))
        return Layout.of_blocks(blocks, style, tokenizer)


def _slots(text: str, name: str) -> list[str]:
    try:
        return [slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None]
    except ValueError as error:
        raise InputError(
            f"{name} has a stray brace ({error}); write {{{{ or }}}} for one in the text", about=name
        ) from error
