"""Prompts: a history of titles becomes token ids that end where the answer, a quoted title, begins.

Three layers, each usable alone: `PromptTemplate` (wording) gives a `PromptLayout` (text), `PromptComposer` makes token
ids from title strings, `PromptBuilder` does the same from item ids. `PromptPieces` is what the composer shares with the
yes/no task (`click_prompt.py`). Training, distillation, generation and scoring all
call the same functions, so the boundary between prompt and response is one token boundary everywhere.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.prompt.titles import Titled, clean_title
from recbole_llm.property_files import find_properties

PROMPT_STYLES = ("alpaca", "plain", "chat")
Encode = Callable[[str], list[int]]

SEPARATOR = ","  # the blank after it belongs to the title's own tokens, as in running text
_MARK = "\ue000"  # around the name of a slot; a private-use character: no wording contains it
_TITLE_SLOTS = {
    "input": ("history",),
    "candidates": ("candidates",),
    "click_input": ("liked", "disliked", "target"),
}


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
        candidates: The sentence that follows it where a prompt lists candidates; its slot is `{candidates}`.
        click_preamble, click_instruction, click_input: The same for the yes/no task (`click_prompt.py`); `click_input`
            has the slots `{liked}`, `{disliked}` and `{target}`, each exactly once.
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

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise InputError(f"{field.name} must be text, not {getattr(self, field.name)!r}")
        for name in [field.name for field in fields(self) if field.name not in ("item", "items", "verb")]:
            used, own = _slots(getattr(self, name), name), _TITLE_SLOTS.get(name, ())
            allowed = ["item", "items", "verb", *own]
            if unknown := sorted(set(used) - set(allowed)):
                raise InputError(f"{name} has an unknown slot {{{unknown[0]}}}; slots: {', '.join(allowed)}")
            for slot in own:
                if used.count(slot) != 1:
                    raise InputError(f"{name} must hold the slot {{{slot}}} exactly once")

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

    def layout(self, style: str = "alpaca", tokenizer: Any = None, candidates: bool = False) -> PromptLayout:
        """Put the sentences into one of the styles.

        Args:
            style: `alpaca` (blocks under headers), `plain` (the same blocks without headers) or `chat` (the plain
                blocks as the user's turn in the tokenizer's own chat template).
            tokenizer: A Hugging Face tokenizer, for `chat` only.
            candidates: Whether the prompt lists the titles to choose from.

        Raises:
            InputError: The style is unknown, or the tokenizer has no usable chat template.
        """
        (head, *between, tail), _ = self.pieces("input", style, tokenizer, candidates)
        return PromptLayout(head, tail, style, *between)

    def pieces(
        self, task: str, style: str = "alpaca", tokenizer: Any = None, candidates: bool = False
    ) -> tuple[list[str], list[str]]:
        """The fixed texts of a task's prompt, and the slots for titles between them.

        Args:
            task: Name of the sentence that holds the titles: `input` or `click_input`.
            style: See :meth:`layout`, as for the last arguments.
            tokenizer: A Hugging Face tokenizer.
            candidates: Whether the sentence `candidates` follows, on a line of its own.

        Returns:
            k + 1 texts, and the names of the k slots in the order of the prompt.

        Raises:
            InputError: The style is unknown, or the tokenizer has no usable chat template.
        """
        words = {"item": self.item, "items": self.items, "verb": self.verb}
        holding = [task, "candidates"] if candidates else [task]
        marks = {slot: f"{_MARK}{slot}{_MARK}" for name in holding for slot in _TITLE_SLOTS[name]}
        prefix = task.removesuffix("input")
        sentences = [getattr(self, prefix + "preamble"), getattr(self, prefix + "instruction")]
        blocks = [text.format(**words) for text in sentences]
        blocks.append("\n".join(getattr(self, name).format(**words, **marks) for name in holding))
        parts = _arrange(blocks, style, tokenizer).split(_MARK)
        return parts[::2], parts[1::2]


@dataclass(frozen=True)
class PromptLayout:
    """The fixed text before and after the history.

    Attributes:
        head: From the start of the prompt to the first title.
        tail: From the last title to the start of the answer.
        style: The style it was made in.
        between: From the last title of the history to the first candidate; None where no candidates are listed.
    """

    head: str
    tail: str
    style: str
    between: str | None = None

    def prompt(self, titles: Sequence[str], candidates: Sequence[str] = ()) -> str:
        """The prompt for a history of titles, oldest first, as text."""
        history, listed = (f"{SEPARATOR} ".join(map(quote, part)) for part in (titles, candidates))
        return self.head + history + (self.between or "") + listed + self.tail

    def facts(self) -> dict[str, str]:
        """What there is of it, for fingerprints."""
        return {name: text for name, text in asdict(self).items() if text is not None}


def quote(title: str) -> str:
    """The title as prompts and responses show it. Inner quotes are kept: titles are never looked up by their text."""
    return f'"{clean_title(title)}"'


class PromptPieces:
    """The token-id pieces that prompts are put together from.

    Fixed texts and quoted titles are tokenised once each and kept, so the beginning is the same token sequence in every
    prompt. A blank before a slot goes to what fills it, as the blank after a separator goes to the next title.

    Attributes:
        n_prompts: Prompts composed so far.
        n_shortened: How many of them exceeded `max_prompt_tokens` and lost titles or a part of one.
    """

    def __init__(
        self,
        texts: Sequence[str],
        encode: Encode,
        *,
        eos_token_id: int,
        style: str = "alpaca",
        bos_token_id: int | None = None,
        max_prompt_tokens: int | None = None,
        chat_template: Any = None,
    ) -> None:
        """Tokenise the fixed texts.

        Args:
            texts: The fixed texts, between each two of them a slot for titles.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            eos_token_id: Ends every response.
            style: `alpaca`, `plain` or `chat`. A chat template spells special tokens, BOS among them, which titles must
                not: they are encoded as such in the fixed texts alone.
            bos_token_id: Starts every prompt, if the tokenizer has one; a chat template brings its own.
            max_prompt_tokens: Longest prompt allowed, BOS included; no limit by default.
            chat_template: The Hugging Face tokenizer whose chat template is used, for style `chat` only.
        """
        self.eos_token_id, self.max_prompt_tokens = eos_token_id, max_prompt_tokens
        self.n_prompts = self.n_shortened = 0
        self._encode = inside_encoder(encode)
        self._pieces: dict[str, list[int]] = {}
        self._blanks = [" " if text.endswith(" ") else "" for text in texts[:-1]]
        wording = special_encoder(chat_template) if style == "chat" else encode
        bos = [] if bos_token_id is None or style == "chat" else [bos_token_id]
        first, *others = [text.removesuffix(" ") for text in texts[:-1]] + [texts[-1]]
        self._fixed = [bos + wording(first), *map(inside_encoder(wording), others)]

    @property
    def common_prefix(self) -> list[int]:
        """Token ids every prompt starts with, BOS included."""
        return self._fixed[0]

    def _quoted(self, titles: Sequence[str], blank: str, behind: Sequence[list[int]] | None = None) -> list[int]:
        """Quoted titles with separators between them, a blank before the first, and something behind each of them."""
        token_ids: list[int] = []
        for place, title in enumerate(titles):
            if place:
                token_ids += self._piece(SEPARATOR)
            token_ids += self._piece((" " if place else blank) + quote(title))
            if behind:
                token_ids += behind[place]
        return token_ids

    def _piece(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._encode(text)
        return self._pieces[text]

    def _check_limit(self, least: int) -> None:
        """Refuses a limit under which not even the shortest prompt has room."""
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < least:
            raise InputError(
                f"max_prompt_tokens: {self.max_prompt_tokens} is too short for the prompt template, which needs at "
                f"least {least}; raise it or shorten the template"
            )


class PromptComposer(PromptPieces):
    """Prompts and responses as token ids, from title strings.

    A prompt is the concatenation of token-id pieces: head, quoted titles with separators between them, where the
    layout has them candidates in the same form, tail.
    """

    def __init__(self, layout: PromptLayout, encode: Encode, **options: Any) -> None:
        """Tokenise the fixed parts.

        Args:
            layout: The fixed text.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            **options: Further arguments of :class:`PromptPieces`; the style is the layout's.

        Raises:
            InputError: The limit leaves no room for a single token of history.
        """
        texts = [text for text in (layout.head, layout.between, layout.tail) if text is not None]
        super().__init__(texts, encode, style=layout.style, **options)
        self.layout = layout
        self._check_limit(sum(map(len, self._fixed)) + 1)

    def compose_prompt(
        self,
        titles: Sequence[str],
        slots: Sequence[int] | None = None,
        candidates: Sequence[str] = (),
        candidate_slots: Sequence[int] | None = None,
    ) -> list[int]:
        """Token ids of the prompt for a history of titles, oldest first.

        A prompt over the limit loses its oldest titles; if the last one alone is still too long, its token ids are
        cut. Head, candidates and tail always stay.

        Args:
            titles: The history.
            slots: An id to stand behind each title, where a model puts more than text into its prompts.
            candidates: The titles to choose from, where the layout lists them.
            candidate_slots: As `slots`, behind each candidate.

        Raises:
            InputError: The candidates leave no room for a single token of history.
            ValueError: The history is empty, or candidates are given without a place for them or the other way round.
        """
        if not titles:
            raise ValueError("a prompt needs at least one title of history")
        behind, end = _each(slots, len(titles)), self._end(candidates, candidate_slots)
        history = self._quoted(titles, self._blanks[0], behind)
        self.n_prompts += 1
        if self.max_prompt_tokens is not None:
            room = self._room(end)
            self.n_shortened += len(history) > room
            while len(history) > room and len(titles) > 1:
                titles, behind = titles[1:], behind[1:]
                history = self._quoted(titles, self._blanks[0], behind)
            history = history[: max(room - len(behind[-1]), 0)] + behind[-1] if len(history) > room else history
        return self.common_prefix + history + end

    def compose_response(self, title: str) -> list[int]:
        """Token ids of the answer: the quoted title, then EOS."""
        return self._piece(quote(title)) + [self.eos_token_id]

    def compose_response_text(self, text: str) -> list[int]:
        """Token ids of any answer text as it stands, then EOS: generated answers serve as targets without grounding."""
        return self._encode(text) + [self.eos_token_id]

    def compose_example(self, titles: Sequence[str], candidates: Sequence[str] = ()) -> tuple[list[int], list[int]]:
        """Prompt and response token ids where the last title answers the ones before it."""
        return self.compose_prompt(titles[:-1], candidates=candidates), self.compose_response(titles[-1])

    def fingerprint(self) -> str:
        """SHA-256 of the fixed text, the style and the limit; the tokenizer belongs to the LLM's own fingerprint."""
        facts = {**self.layout.facts(), "separator": SEPARATOR, "max_prompt_tokens": self.max_prompt_tokens}
        return hash_json(facts)

    def _end(self, candidates: Sequence[str], slots: Sequence[int] | None) -> list[int]:
        """What follows the history."""
        if bool(candidates) != (self.layout.between is not None):
            raise ValueError("candidates are listed where the layout has a place for them, and only there")
        if not candidates:
            return self._fixed[1]
        listed = self._quoted(candidates, self._blanks[1], _each(slots, len(candidates)))
        return self._fixed[1] + listed + self._fixed[2]

    def check_candidates(self, candidates: Sequence[str], slots: Sequence[int] | None = None) -> None:
        """Raises what :meth:`compose_prompt` would raise of these candidates, whatever the history."""
        if self.max_prompt_tokens is not None:
            self._room(self._end(candidates, slots))

    def _room(self, end: list[int]) -> int:
        """Tokens that the limit leaves to the history."""
        room = self.max_prompt_tokens - len(self.common_prefix) - len(end)
        if room < 1:
            least = self.max_prompt_tokens - room + 1
            raise InputError(
                f"max_prompt_tokens: {self.max_prompt_tokens} is too short for a prompt with its candidates, which "
                f"needs at least {least}; raise it, or list fewer candidates"
            )
        return room


def _each(slots: Sequence[int] | None, count: int) -> list[list[int]]:
    """What stands behind each of so many titles."""
    return [[]] * count if slots is None else [[slot] for slot in slots]


class PromptBuilder:
    """Prompts and responses as token ids, from item ids: the one place where a history becomes a prompt."""

    def __init__(
        self,
        template: PromptTemplate,
        encode: Encode,
        catalog: Titled,
        *,
        style: str = "alpaca",
        chat_template: Any = None,
        item_slots: bool = False,
        candidates: bool = False,
        **options: Any,
    ) -> None:
        """Join wording, tokenizer and catalogue.

        Args:
            template: The wording.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            catalog: The items.
            style: See :class:`PromptPieces`, as for the next.
            chat_template: The Hugging Face tokenizer.
            item_slots: Whether every title of a history is followed by its item's slot: the negative item id, a
                "token" that no tokenizer knows and no text can contain.
            candidates: Whether prompts list the titles to choose from.
            **options: Further arguments of :class:`PromptPieces`.

        Raises:
            InputError: Unknown style, no usable chat template, or a limit that is too short for the template.
        """
        self.catalog, self.item_slots = catalog, item_slots
        self.layout = template.layout(style, chat_template)
        layout = template.layout(style, chat_template, candidates)
        self.composer = PromptComposer(layout, encode, chat_template=chat_template, **options)

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

    def prompt(self, history: Sequence[int], candidates: Sequence[int] = ()) -> list[int]:
        """Token ids of the prompt for a history of item ids, oldest first, and candidates in their own order.

        Padding and untitled items are skipped; repeated items are kept.

        Raises:
            ValueError: No titled item is left: the caller skips and counts such a user.
        """
        return self.composer.compose_prompt(*self._shown(history), *self._shown(candidates))

    def check_candidates(self, candidates: Sequence[int]) -> None:
        """Refuse candidates, given by item ids, beside which no token of a history has room.

        Raises:
            InputError: There is no room.
        """
        self.composer.check_candidates(*self._shown(candidates))

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
        """The whole prompt as text, for people to read: BOS and candidates not shown, not shortened."""
        return self.layout.prompt(self._titles(history))

    def fingerprint(self) -> str:
        """SHA-256 of wording, style and limit; catalogue and LLM have their own."""
        return self.composer.fingerprint() + ("-item-slots" if self.item_slots else "")

    def _shown(self, items: Sequence[int]) -> tuple[list[str], list[int] | None]:
        """Titles and slots of the items that have a title."""
        titled = [item for item in items if self.catalog.titles[item] is not None]
        return self._titles(titled), [-item for item in titled] if self.item_slots else None

    def _titles(self, history: Sequence[int]) -> list[str]:
        titles = (self.catalog.titles[item_id] for item_id in history)
        return [title for title in titles if title is not None]


def inside_encoder(encode: Encode) -> Encode:
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


def special_encoder(tokenizer: Any) -> Encode:
    """Encode a text that may spell special tokens, as chat templates do; none is added."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def _arrange(blocks: Sequence[str], style: str, tokenizer: Any) -> str:
    """Preamble, instruction and input in one of the styles, up to where the answer begins."""
    if style == "alpaca":
        return _join(["", "### Instruction:\n", "### Input:\n"], blocks) + "\n\n### Response:\n"
    if style == "plain":
        return _join(["", "", ""], blocks) + "\n\n"
    if style == "chat":
        return _chat_turn(_join(["", "", ""], blocks), tokenizer)
    raise InputError(f"prompt_style: no style {style!r}; choose one of {', '.join(PROMPT_STYLES)}")


def _chat_turn(content: str, tokenizer: Any) -> str:
    """The user's turn in the tokenizer's chat template, up to where the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("prompt_style: the tokenizer of llm_path has no chat template; choose alpaca or plain")
    turns = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if text.count(_MARK) != content.count(_MARK):
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
