"""Prompts: a history of titles becomes token ids that end where the answer, a quoted title, begins.

Three layers, each usable alone: `PromptTemplate` (wording) gives a `PromptLayout` (text), `PromptComposer` makes token
ids from title strings, `PromptBuilder` does the same from item ids. Training, distillation, generation and scoring all
call the same functions, so the boundary between prompt and response is one token boundary everywhere.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.data.catalog import ItemCatalog, clean_title
from recbole_llm.errors import InputError
from recbole_llm.property_files import find_properties

PROMPT_STYLES = ("alpaca", "plain", "chat")
Encode = Callable[[str], list[int]]

_SEPARATOR = ","  # the blank after it belongs to the title's own tokens, as in running text
_HISTORY_MARK = "\ue000history\ue000"  # private-use characters: no wording contains them


def text_encoder(tokenizer: Any) -> Encode:
    """Encode text as text: no BOS or EOS is added, and a title that spells a special token stays ordinary text."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


@dataclass(frozen=True)
class PromptTemplate:
    """The wording of one domain's prompts.

    Sentences may use the slots `{item}`, `{items}` and `{verb}`; `input` has the slot `{history}` too, exactly once.

    Attributes:
        item: One catalogue item, e.g. movie.
        items: Several of them.
        verb: What a user does with them, as a past participle, e.g. watched.
        preamble: Opening sentence.
        instruction: The task.
        input: The sentence that holds the history.
    """

    item: str
    items: str
    verb: str
    preamble: str = "You know {items} well and answer with the name of one {item} in double quotes."
    instruction: str = "Here are the {items} a user has {verb}, oldest first. Name one new {item} this user would like."
    input: str = "So far this user has {verb} these {items}: {history}"

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise InputError(f"{field.name} must be text, not {getattr(self, field.name)!r}")
        slots = {name: _slots(getattr(self, name), name) for name in ("preamble", "instruction", "input")}
        for name, used in slots.items():
            allowed = ["item", "items", "verb"] + ["history"] * (name == "input")
            if unknown := sorted(set(used) - set(allowed)):
                raise InputError(f"{name} has an unknown slot {{{unknown[0]}}}; slots: {', '.join(allowed)}")
        if slots["input"].count("history") != 1:
            raise InputError("input must hold the slot {history} exactly once")

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> PromptTemplate:
        """Read the wording from a YAML file, or take it from a mapping with the same keys.

        Raises:
            InputError: The file cannot be read, or a key is missing, unknown or not text.
        """
        where = "prompt template" if isinstance(source, Mapping) else f"prompt template {source}"
        wording = source if isinstance(source, Mapping) else _read_yaml(Path(source), where)
        known = [field.name for field in fields(cls)]
        if unknown := [str(key) for key in wording if key not in known]:
            raise InputError(f"{where}: unknown key {unknown[0]!r}; keys: {', '.join(known)}")
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in wording]:
            raise InputError(f"{where}: key {missing[0]!r} is missing; it needs {', '.join(required)}")
        try:
            return cls(**wording)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def of_domain(cls, domain: str) -> PromptTemplate:
        """The wording of one of the domains in `properties/prompt`, or of a YAML file of the user's own.

        Raises:
            InputError: There is neither, or the file is no template.
        """
        folder = find_properties() / "prompt"
        for file in (Path(domain), folder / f"{domain}.yaml"):
            if file.suffix == ".yaml" and file.is_file():
                return cls.load(file)
        domains = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"domain: there are no words for '{domain}'; choose one of {domains}, or give a .yaml file")

    def layout(self, style: str = "alpaca", tokenizer: Any = None) -> PromptLayout:
        """Put the sentences into one of the styles.

        Args:
            style: `alpaca` (blocks under headers), `plain` (the same blocks without headers) or `chat` (the plain
                blocks as the user's turn in the tokenizer's own chat template).
            tokenizer: A Hugging Face tokenizer, for `chat` only.

        Raises:
            InputError: The style is unknown, or the tokenizer has no usable chat template.
        """
        slots = {"item": self.item, "items": self.items, "verb": self.verb}
        blocks = [
            self.preamble.format(**slots),
            self.instruction.format(**slots),
            self.input.format(**slots, history=_HISTORY_MARK),
        ]
        if style == "alpaca":
            text = _join(["", "### Instruction:\n", "### Input:\n"], blocks) + "\n\n### Response:\n"
        elif style == "plain":
            text = _join(["", "", ""], blocks) + "\n\n"
        elif style == "chat":
            text = _chat_turn(_join(["", "", ""], blocks), tokenizer)
        else:
            raise InputError(f"prompt_style: no style {style!r}; choose one of {', '.join(PROMPT_STYLES)}")
        head, _, tail = text.partition(_HISTORY_MARK)
        return PromptLayout(head, tail, style)


@dataclass(frozen=True)
class PromptLayout:
    """The fixed text before and after the history.

    Attributes:
        head: From the start of the prompt to the first title.
        tail: From the last title to the start of the answer.
        style: The style it was made in.
    """

    head: str
    tail: str
    style: str

    def prompt(self, titles: Sequence[str]) -> str:
        """The prompt for a history of titles, oldest first, as text."""
        return self.head + f"{_SEPARATOR} ".join(map(quote, titles)) + self.tail


def quote(title: str) -> str:
    """The title as prompts and responses show it. Inner quotes are kept: titles are never looked up by their text."""
    return f'"{clean_title(title)}"'


class PromptComposer:
    """Prompts and responses as token ids, from title strings.

    A prompt is the concatenation of token-id pieces: head, quoted titles with separators between them, tail. Every
    piece is tokenised once and kept, so the head is the same token sequence in every prompt.

    Attributes:
        common_prefix: Token ids every prompt starts with, BOS included.
        n_prompts: Prompts composed so far.
        n_shortened: How many of them exceeded `max_prompt_tokens` and lost titles or a part of one.
    """

    def __init__(
        self,
        layout: PromptLayout,
        encode: Encode,
        *,
        eos_token_id: int,
        bos_token_id: int | None = None,
        max_prompt_tokens: int | None = None,
        encode_wording: Encode | None = None,
    ) -> None:
        """Tokenise the fixed parts.

        Args:
            layout: The fixed text.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            eos_token_id: Ends every response.
            bos_token_id: Starts every prompt, if the tokenizer has one.
            max_prompt_tokens: Longest prompt allowed, BOS included; no limit by default.
            encode_wording: How head and tail are encoded where that differs from titles: a chat template spells
                special tokens, BOS among them, which titles must not.

        Raises:
            InputError: The limit leaves no room for a single token of history.
        """
        self.layout = layout
        self.max_prompt_tokens = max_prompt_tokens
        self.eos_token_id = eos_token_id
        self.n_prompts = self.n_shortened = 0
        self._encode = _inside(encode)
        self._pieces: dict[str, list[int]] = {}
        wording = encode_wording or encode

        blank = layout.head.endswith(" ")  # given to the first title, as the blank after a separator is to the next
        bos = [] if bos_token_id is None or layout.style == "chat" else [bos_token_id]
        self.common_prefix = bos + wording(layout.head[:-1] if blank else layout.head)
        self._first_blank = " " if blank else ""
        self._separator = self._encode(_SEPARATOR)
        self._tail = _inside(wording)(layout.tail)
        self._check_limit()

    def compose_prompt(self, titles: Sequence[str]) -> list[int]:
        """Token ids of the prompt for a history of titles, oldest first.

        A prompt over the limit loses its oldest titles; if the last one alone is still too long, its token ids are
        cut. Head and tail always stay.

        Raises:
            ValueError: The history is empty.
        """
        if not titles:
            raise ValueError("a prompt needs at least one title of history")
        history = self._history(titles)
        self.n_prompts += 1
        if self.max_prompt_tokens is not None:
            room = self.max_prompt_tokens - len(self.common_prefix) - len(self._tail)
            self.n_shortened += len(history) > room
            while len(history) > room and len(titles) > 1:
                titles = titles[1:]
                history = self._history(titles)
            history = history[:room]
        return self.common_prefix + history + self._tail

    def compose_response(self, title: str) -> list[int]:
        """Token ids of the answer: the quoted title, then EOS."""
        return self._piece(quote(title)) + [self.eos_token_id]

    def compose_response_text(self, text: str) -> list[int]:
        """Token ids of any answer text as it stands, then EOS: generated answers serve as targets without grounding."""
        return self._encode(text) + [self.eos_token_id]

    def compose_example(self, titles: Sequence[str]) -> tuple[list[int], list[int]]:
        """Prompt and response token ids where the last title answers the ones before it."""
        return self.compose_prompt(titles[:-1]), self.compose_response(titles[-1])

    def fingerprint(self) -> str:
        """SHA-256 of the fixed text, the style and the limit; the tokenizer belongs to the LLM's own fingerprint."""
        facts = {**asdict(self.layout), "separator": _SEPARATOR, "max_prompt_tokens": self.max_prompt_tokens}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _history(self, titles: Sequence[str]) -> list[int]:
        token_ids = list(self._piece(self._first_blank + quote(titles[0])))
        for title in titles[1:]:
            token_ids += self._separator
            token_ids += self._piece(" " + quote(title))
        return token_ids

    def _piece(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._encode(text)
        return self._pieces[text]

    def _check_limit(self) -> None:
        least = len(self.common_prefix) + len(self._tail) + 1
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < least:
            raise InputError(
                f"max_prompt_tokens: {self.max_prompt_tokens} is too short for the prompt template, which needs at "
                f"least {least}; raise it or shorten the template"
            )


class PromptBuilder:
    """Prompts and responses as token ids, from item ids: the one place where a history becomes a prompt."""

    def __init__(
        self,
        template: PromptTemplate,
        encode: Encode,
        catalog: ItemCatalog,
        *,
        eos_token_id: int,
        style: str = "alpaca",
        bos_token_id: int | None = None,
        max_prompt_tokens: int | None = None,
        chat_template: Any = None,
    ) -> None:
        """Join wording, tokenizer and catalogue.

        Args:
            template: The wording.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            catalog: The items.
            eos_token_id: Ends every response.
            style: `alpaca`, `plain` or `chat`.
            bos_token_id: Starts every prompt, if the tokenizer has one; a chat template brings its own.
            max_prompt_tokens: Longest prompt allowed, BOS included; no limit by default.
            chat_template: The Hugging Face tokenizer whose chat template is used, for style `chat` only.

        Raises:
            InputError: Unknown style, no usable chat template, or a limit that is too short for the template.
        """
        self.catalog = catalog
        self.layout = template.layout(style, chat_template)
        self.composer = PromptComposer(
            self.layout,
            encode,
            eos_token_id=eos_token_id,
            bos_token_id=bos_token_id,
            max_prompt_tokens=max_prompt_tokens,
            encode_wording=_special_encoder(chat_template) if style == "chat" else None,
        )

    @property
    def common_prefix(self) -> list[int]:
        """Token ids every prompt starts with, BOS included."""
        return self.composer.common_prefix

    @property
    def n_prompts(self) -> int:
        """Prompts built so far."""
        return self.composer.n_prompts

    @property
    def n_shortened(self) -> int:
        """How many of them exceeded `max_prompt_tokens` and lost titles or a part of one."""
        return self.composer.n_shortened

    def prompt(self, history: Sequence[int]) -> list[int]:
        """Token ids of the prompt for a history of item ids, oldest first.

        Padding and untitled items are skipped; repeated items are kept.

        Raises:
            ValueError: No titled item is left: the caller skips and counts such a user.
        """
        return self.composer.compose_prompt(self._titles(history))

    def response(self, item_id: int) -> list[int]:
        """Token ids of the answer that names this item, EOS included.

        Raises:
            ValueError: The item has no title.
        """
        title = self.catalog.titles[item_id]
        if title is None:
            raise ValueError(f"item {self.catalog.tokens[item_id]!r} has no title and cannot be an answer")
        return self.composer.compose_response(title)

    def response_from_text(self, text: str) -> list[int]:
        """Token ids of a generated answer text as it stands, EOS included."""
        return self.composer.compose_response_text(text)

    def text(self, history: Sequence[int]) -> str:
        """The whole prompt as text, for people to read: BOS not shown, not shortened."""
        return self.layout.prompt(self._titles(history))

    def fingerprint(self) -> str:
        """SHA-256 of wording, style and limit; catalogue and LLM have their own."""
        return self.composer.fingerprint()

    def _titles(self, history: Sequence[int]) -> list[str]:
        titles = (self.catalog.titles[item_id] for item_id in history)
        return [title for title in titles if title is not None]


def _inside(encode: Encode) -> Encode:
    """The same encoding for a text that does not open the prompt.

    Some tokenizers put a blank before any text they are given (Llama's SentencePiece among them). Encoding after a line
    break and dropping the line break's own ids avoids it; where the line break merges with the text this is no use,
    and tokenizers that merge there add no blank either.
    """
    anchor = encode("\n")

    def encode_inside(text: str) -> list[int]:
        token_ids = encode("\n" + text)
        return token_ids[len(anchor) :] if token_ids[: len(anchor)] == anchor else encode(text)

    return encode_inside


def _join(headers: Sequence[str], blocks: Sequence[str]) -> str:
    return "\n\n".join(header + block for header, block in zip(headers, blocks, strict=True) if block)


def _special_encoder(tokenizer: Any) -> Encode:
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _chat_turn(content: str, tokenizer: Any) -> str:
    """The user's turn in the tokenizer's chat template, up to where the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("prompt_style: the tokenizer of llm_path has no chat template; choose alpaca or plain")
    turns = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if text.count(_HISTORY_MARK) != 1:
        raise InputError("prompt_style: the chat template of llm_path does not print the user's turn; choose alpaca")
    return text


def _slots(text: str, name: str) -> list[str]:
    try:
        return [slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None]
    except ValueError as error:
        raise InputError(f"{name} has a stray brace ({error}); write {{{{ or }}}} for one in the text") from error


def _read_yaml(path: Path, where: str) -> Mapping[str, Any]:
    try:
        wording = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(wording, Mapping):
        raise InputError(f"{where} must map keys to text")
    return wording
