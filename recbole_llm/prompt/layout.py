"""The text of a prompt: fixed parts with slots for titles between them, in one of the styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from recbole_llm.errors import InputError
from recbole_llm.prompt.titles import clean_answer, clean_title

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_STYLES = ("alpaca", "plain", "list", "lines", "chat")
LIST = "list"  # the answer is the next title of the history
LINES = "lines"  # as in a list, with a bare title on each line
SEPARATOR = ","  # the blank after it belongs to the title's own tokens, as in running text
LINE_BREAK = "\n"
NONE = "none"  # in place of an empty list of titles
_MARK = "\ue000"  # around the name of a slot; a private-use character: no wording contains it


def quote(title: str) -> str:
    """The title as prompts and responses show it. Inner quotes are kept: titles are never looked up by their text."""
    return f'"{title}"'


def slot_mark(name: str) -> str:
    """What stands for a slot in the blocks that :meth:`Layout.of_blocks` takes."""
    return f"{_MARK}{name}{_MARK}"


@dataclass(frozen=True)
class Layout:
    """The fixed texts of a prompt and the slots for titles between them.

    Attributes:
        texts: k + 1 texts, from the start of the prompt to the start of the answer.
        slots: Names of the k slots, in the order of the prompt.
        style: The style it was made in.
    """

    texts: tuple[str, ...]
    slots: tuple[str, ...]
    style: str

    @classmethod
    def of_blocks(cls, blocks: Sequence[str], style: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Layout:
        """Arrange preamble, instruction and input in one of the styles, up to where the answer begins.

        Args:
            blocks: The three texts, slots as :func:`slot_mark` writes them; an empty one is left out.
            style: `alpaca` (blocks under headers), `plain` (the same blocks without headers), `list` (the input alone,
                which ends with the history, and a separator: the answer continues with it), `lines` (the same with a
                title on each line, without quotes) or `chat` (the plain blocks as the user's turn in the tokenizer's
                own chat template).
            tokenizer: A Hugging Face tokenizer, for `chat` only.

        Raises:
            InputError: The style is unknown, the tokenizer has no usable chat template, or `list` or `lines` is asked
                of an input without a history at its end.
        """
        if style not in PROMPT_STYLES:
            raise InputError(
                f"prompt_style: no style {style!r}; choose one of {', '.join(PROMPT_STYLES)}", kind="unknown"
            )
        if style in (LIST, LINES):
            return cls._going_on(blocks[-1], style)
        headers = ("", "### Instruction:\n", "### Input:\n") if style == "alpaca" else ("", "", "")
        joined = "\n\n".join(header + block for header, block in zip(headers, blocks, strict=True) if block)
        if style == "chat":
            text = _chat_turn(joined, tokenizer)
        else:
            text = joined + ("\n\n### Response:\n" if style == "alpaca" else "\n\n")
        parts = text.split(_MARK)
        return cls(tuple(parts[::2]), tuple(parts[1::2]), style)

    @classmethod
    def _going_on(cls, block: str, style: str) -> Layout:
        """The layout of a block that ends with the history, which the answer continues with."""
        if _MARK not in block:
            raise InputError(
                "prompt_style",
                f"{style} needs a history in the prompt, and this one shows none; choose plain",
                kind="conflict",
            )
        *texts, last, end = block.split(_MARK)
        if end or last != "history":
            raise InputError(
                "prompt_style",
                f"{style} needs the history at the end of the prompt; choose plain",
                kind="conflict",
            )
        *before, first = texts[::2]
        if style == LINES:
            return cls((*before, first.rstrip() + LINE_BREAK, LINE_BREAK), (*texts[1::2], last), style)
        return cls((*before, first, SEPARATOR), (*texts[1::2], last), style)

    @property
    def separator(self) -> str:
        """What follows every title of a slot but the last, a blank not counted."""
        return LINE_BREAK if self.style == LINES else SEPARATOR

    @property
    def before_title(self) -> str:
        """What stands between a separator and a title, and belongs to the title's own tokens."""
        return "" if self.style == LINES else " "

    @property
    def before_answer(self) -> str:
        """What stands between the end of the prompt and the answer, and belongs to the answer's own tokens."""
        return " " if self.style == LIST else ""

    def show(self, title: str) -> str:
        """A title as prompts and answers show it: quoted, but for ``lines``."""
        return title if self.style == LINES else quote(title)

    def title_of(self, answer: str) -> str:
        r"""The title that a generated answer names: what :meth:`show` makes of a title is that title again.

        With ``lines`` it is the answer's first line; else see :func:`recbole_llm.prompt.titles.clean_answer`.

        Example:
            >>> lines = Layout.of_blocks(["", "", "Watched: " + slot_mark("history")], "lines")
            >>> lines.title_of('"Heroes" \n"Live"'), lines.texts
            ('"Heroes"', ('Watched:\n', '\n'))
        """
        return clean_title(answer.strip().partition(LINE_BREAK)[0]) if self.style == LINES else clean_answer(answer)

    def fill(self, titles: Mapping[str, Sequence[str]]) -> str:
        """The whole prompt as text.

        Args:
            titles: The titles of every slot; an empty list is shown as `none`.
        """
        between = self.separator + self.before_title
        filled = {slot: between.join(map(self.show, own)) or NONE for slot, own in titles.items()}
        parts = zip(self.texts, [*self.slots, None], strict=True)
        return "".join(text + (filled[slot] if slot else "") for text, slot in parts)

    def facts(self) -> dict[str, Any]:
        """What there is of it, for fingerprints."""
        return asdict(self)


def _chat_turn(content: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The user's turn in the tokenizer's chat template, up to where the answer begins."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "prompt_style: the tokenizer of llm_path has no chat template; choose alpaca or plain", kind="conflict"
        )
    turns = [{"role": "user", "content": content}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    if text.count(_MARK) != content.count(_MARK):
        raise InputError(
            "prompt_style: the chat template of llm_path does not print the user's turn; choose alpaca", kind="conflict"
        )
    return text
