"""Text encoders other than the run's LLM: any model of sentence-transformers or Hugging Face.

The extra ``text-encoders`` brings sentence-transformers, which reads from the encoder's own files how states become a
vector; where they say nothing, it is the mean.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file

from recbole_llm.errors import InputError, first_line
from recbole_llm.llm.budget import TokenBudget
from recbole_llm.llm.encoder import encode_in_batches, mean_state
from recbole_llm.llm.folders import CORESET_ENCODER, check_installed, find_encoder, folder_fingerprint, or_llm
from recbole_llm.llm.rows import pad_batch
from recbole_llm.modes import evaluating

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderRecipe:
    """The parts of an encoder, found without loading the weights.

    Attributes:
        source: folder or hub name.
        fingerprint: changes when weights or tokenizer change.
        modules: the modules that sentence-transformers puts behind one another, and their settings; none where the
            encoder has no ``modules.json``: then it is the mean over the states of a Hugging Face model.
        subfolder: subfolder of the model inside the source.
        max_tokens: longest text that the makers say it takes; None where they say nothing.
    """

    source: str
    fingerprint: str
    modules: tuple[tuple[str, str], ...] = ()
    subfolder: str = ""
    max_tokens: int | None = None

    def facts(self) -> dict[str, Any]:
        """What vectors depend on besides the texts, as JSON values; the same files in another folder are the same."""
        facts = {name: value for name, value in asdict(self).items() if name != "source"}
        return {**facts, "modules": [list(module) for module in self.modules]}


def find_text_encoder(name: str | Path, trust_remote_code: bool = False, key: str = CORESET_ENCODER) -> EncoderRecipe:
    """Read the parts of an encoder.

    Args:
        name: folder with a saved model, or a name on the Hugging Face hub.
        trust_remote_code: allow model code that comes with it.
        key: name of the setting that gave it.

    Raises:
        InputError: there is no such encoder, its files cannot be read, or sentence-transformers is not installed.
    """
    source = find_encoder(name, key)
    check_installed(name, key)
    try:
        parts = _read_modules(source, key)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            key,
            f"modules.json of {name}, or a file it names, is not as sentence-transformers writes it "
            f"({type(error).__name__}: {first_line(error)}); save the encoder again",
            kind="file",
        ) from error
    subfolder = parts.get("subfolder", "")
    try:
        config = AutoConfig.from_pretrained(source, subfolder=subfolder, trust_remote_code=trust_remote_code)
    except Exception as error:  # OSError, ValueError, KeyError, or what the hub's client raises
        raise InputError(
            key,
            f"{name} is neither a folder with a model nor one that the Hugging Face hub gave "
            f"({first_line(error)}); check name and connection{or_llm(key)}",
            kind="file",
        ) from error
    folder = Path(source) / subfolder
    found = folder_fingerprint(folder) if folder.is_dir() else getattr(config, "_commit_hash", None) or source
    return EncoderRecipe(source, found, **parts)


def _read_modules(source: str, key: str) -> dict[str, Any]:
    """What the files of sentence-transformers say; nothing for a plain model."""
    modules: list[tuple[str, str]] = []
    parts: dict[str, Any] = {}
    for module in _read_json(source, "modules.json", key) or []:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Transformer":
            settings = _read_json(source, "/".join(filter(None, [path, "sentence_bert_config.json"])), key) or {}
            parts |= {"subfolder": path, "max_tokens": settings.get("max_seq_length")}
            modules.append((kind, ""))
        else:
            settings = _read_json(source, f"{path}/config.json", key) or {}
            modules.append((kind, json.dumps(settings, sort_keys=True)))
    return {**parts, "modules": tuple(modules)}


def _read_json(source: str, file: str, key: str) -> Any:
    """A file's contents; None where the source has no such file."""
    try:
        path = cached_file(source, file)
    except OSError:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(key, f"{file} of {source} cannot be read: {first_line(error)}", kind="file") from error


class SentenceEncoder:
    """Texts to vectors by a model of sentence-transformers.

    A text that is too long loses its beginning, which in a prompt is the wording and the oldest items. A vector does
    not depend, up to rounding, on the texts that share its batch. Prompts that a model would put before texts are left
    out.

    Args:
        model: a ``SentenceTransformer``.
        max_batch_tokens: limit of (texts x longest text) of a batch; decides memory and speed only.
        max_tokens: lowered to what model and tokenizer take.
    """

    def __init__(self, model: Any, max_batch_tokens: int | TokenBudget = 8192, max_tokens: int = 512) -> None:
        self.model, self.tokenizer, self.budget = model, model.tokenizer, TokenBudget.of(max_batch_tokens)
        limits = (max_tokens, self.tokenizer.model_max_length, model.max_seq_length, _positions(model))
        self.max_tokens = int(min(limit for limit in limits if limit))

    def encode(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Vectors of texts, in their order. Returns: float32 [texts, d]."""
        with evaluating(self.model), torch.no_grad():
            width = self._pool([[self._padding]]).shape[1]
            return encode_in_batches(texts, self.tokenize, self._pool, width, self.budget, progress)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included; at least one, at most `max_tokens`."""
        if not texts:
            return []
        whole = self.tokenizer(list(texts))["input_ids"]
        if too_long := sum(len(ids) > self.max_tokens for ids in whole):
            log.warning("%d of %d texts lost their beginning: over %d tokens.", too_long, len(texts), self.max_tokens)
            side, self.tokenizer.truncation_side = self.tokenizer.truncation_side, "left"
            whole = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
            self.tokenizer.truncation_side = side
        return [ids or [self._padding] for ids in whole]

    @property
    def _padding(self) -> int:
        """RoBERTa counts positions by it, so any other id will not do."""
        return self.tokenizer.pad_token_id or 0

    def _pool(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of one batch, float32 [texts, d]."""
        ids, mask = pad_batch(token_ids, self._padding, next(self.model.parameters()).device, left=False)
        found = self.model({"input_ids": ids, "attention_mask": mask})
        if "sentence_embedding" not in found:  # no module pools
            return mean_state(found["token_embeddings"].float(), mask)
        vectors: Tensor = found["sentence_embedding"].float()
        return vectors


def _positions(model: nn.Module) -> int | None:
    """Longest input: RoBERTa's table of positions begins behind its padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def load_text_encoder(
    recipe: EncoderRecipe,
    *,
    device: str | torch.device = "cpu",
    max_batch_tokens: int | TokenBudget = 8192,
    max_tokens: int = 4096,
    trust_remote_code: bool = False,
    key: str = CORESET_ENCODER,
) -> SentenceEncoder:
    """Load the encoder of a recipe, in float32.

    Args:
        recipe: what :func:`find_text_encoder` gave.
        device: what computes.
        max_batch_tokens: limit of (texts x longest text) of a batch; decides memory and speed only.
        max_tokens: longest text; lowered to what the makers say.
        trust_remote_code: allow model code that comes with it.
        key: name of the setting that gave the encoder.

    Raises:
        InputError: weights or tokenizer cannot be loaded, or weights are missing.
    """
    from sentence_transformers import SentenceTransformer

    options = {"trust_remote_code": trust_remote_code}
    try:
        # sentence-transformers does not say which weights are missing.
        _, info = AutoModel.from_pretrained(
            recipe.source, subfolder=recipe.subfolder, output_loading_info=True, **options
        )
        model = SentenceTransformer(recipe.source, device=str(device), model_kwargs={"dtype": torch.float32}, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions for a broken tokenizer.json
        raise InputError(
            key,
            f"{recipe.source} cannot be loaded: {first_line(error)}; fetch or save it again",
            kind="file",
        ) from error
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):  # no vector goes through it
        raise InputError(
            key,
            f"{recipe.source} lacks {len(missing)} weights, first {missing[0]}; fetch or save it again",
            kind="file",
        )
    kinds = ", ".join(kind for kind, _ in recipe.modules)
    log.info("%s: %s, made of %s", key, recipe.source, kinds or "Transformer and the mean of its states")
    return SentenceEncoder(model, max_batch_tokens, min(max_tokens, recipe.max_tokens or max_tokens))
