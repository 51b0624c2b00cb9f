"""Prompts: wording, and how rows of item ids become token ids."""

from recbole_llm.prompt.click import ClickPromptEncoder
from recbole_llm.prompt.encoder import PromptEncoder
from recbole_llm.prompt.example import Example
from recbole_llm.prompt.next_item import TitlePromptEncoder
from recbole_llm.prompt.tokens import text_encoder
from recbole_llm.prompt.wording import Wording

__all__ = ["ClickPromptEncoder", "Example", "PromptEncoder", "TitlePromptEncoder", "Wording", "text_encoder"]
