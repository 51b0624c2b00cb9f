"""Encoders of texts that are not the run's LLM: any sentence-transformers or Hugging Face model, by name or folder."""

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
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from recbole_llm.errors import InputError
from recbole_llm.llm.backbone import folder_fingerprint
from recbole_llm.llm.encoder import encode_in_batches, mean_state
from recbole_llm.llm.parts import unwrapped
from recbole_llm.llm.rows import pad_batch
from recbole_llm.modes import evaluating

ENCODER_POOLINGS = ("mean", "cls", "lasttoken", "max")  # under the names of sentence-transformers
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderRecipe:
    """What an encoder is made of, and how its states become a vector; found without loading the weights.

    Attributes:
        source: folder or hub name.
        fingerprint: changes when weights or tokenizer change.
        subfolder: of the model inside the source.
        pooling: one of ``ENCODER_POOLINGS``.
        normalize: whether vectors have length 1.
        max_tokens: longest text that the makers say it takes; None where they say nothing.
    """

    source: str
    fingerprint: str
    subfolder: str = ""
    pooling: str = "mean"
    normalize: bool = False
    max_tokens: int | None = None

    def facts(self) -> dict[str, Any]:
        """What vectors depend on besides the texts, as JSON values; the same files in another folder are the same."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


def find_text_encoder(name: str | Path, trust_remote_code: bool = False) -> EncoderRecipe:
    """Read how an encoder is to be used: as its ``modules.json`` (sentence-transformers) says, else the mean.

    Args:
        name: folder with a saved model, or a name on the Hugging Face hub.
        trust_remote_code: allow model code that comes with it.

    Raises:
        InputError: there is no such encoder, or it is put together in a way that is unknown here.
    """
    source = str(Path(name).expanduser())
    if not Path(source).is_dir() and (source.count("/") > 1 or source.startswith((".", "/"))):
        raise InputError(f"coreset_encoder: there is no folder {name}; give an existing one, a hub name, or llm")
    try:
        recipe = {"source": source, **_read_modules(source)}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"coreset_encoder: modules.json of {name}, or a file it names, is not as sentence-transformers writes it "
            f"({type(error).__name__}: {_first_line(error)}); save the encoder again"
        ) from error
    folder = Path(source) / recipe.get("subfolder", "")
    try:
        options = {"subfolder": recipe.get("subfolder", ""), "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # OSError, ValueError, KeyError, or what the hub's client raises
        raise InputError(
            f"coreset_encoder: {name} is neither a folder with a model nor one that the Hugging Face hub gave "
            f"({_first_line(error)}); check name and connection, or give llm"
        ) from error
    found = folder_fingerprint(folder) if folder.is_dir() else getattr(config, "_commit_hash", None) or source
    return EncoderRecipe(fingerprint=found, **recipe)


def _read_modules(source: str) -> dict[str, Any]:
    """What sentence-transformers' files say; nothing for a plain model."""
    recipe: dict[str, Any] = {}
    for module in _read_json(source, "modules.json") or []:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Transformer":
            settings = _read_json(source, "/".join(filter(None, [path, "sentence_bert_config.json"]))) or {}
            recipe |= {"subfolder": path, "max_tokens": settings.get("max_seq_length")}
        elif kind == "Pooling":
            recipe["pooling"] = _pooling(source, _read_json(source, f"{path}/config.json"))
        elif kind == "Normalize":
            recipe["normalize"] = True
        else:
            raise InputError(f"coreset_encoder: {source} has a module '{kind}', which is not known; choose another one")
    return recipe


def _pooling(source: str, settings: dict[str, Any] | None) -> str:
    """The one way of pooling that is switched on; the mean where nothing is said."""
    if settings is None:
        return "mean"
    switched_on = [
        _MODES.get(name, name) for name, value in settings.items() if name.startswith("pooling_mode_") and value
    ]
    named = settings.get("pooling_mode", switched_on)
    chosen = [named] if isinstance(named, str) else named
    if len(chosen) != 1 or chosen[0] not in ENCODER_POOLINGS:
        raise InputError(
            f"coreset_encoder: {source} pools by {' and '.join(chosen) or 'nothing'}; choose one that pools by one of "
            f"{', '.join(ENCODER_POOLINGS)}"
        )
    return chosen[0]


def _read_json(source: str, file: str) -> Any:
    """A file's contents; None where the source has no such file."""
    try:
        place = cached_file(source, file)
    except OSError:
        return None
    try:
        return json.loads(Path(place).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"coreset_encoder: {file} of {source} cannot be read: {_first_line(error)}") from error


class SentenceEncoder:
    """Texts to vectors by a bidirectional or causal model and a pooling of its last states.

    A text that is too long loses its beginning, which in a prompt is the wording and the oldest items. A vector does
    not depend, up to rounding, on the texts that share its batch.

    Args:
        model: as ``AutoModel`` loads it.
        tokenizer: its tokenizer.
        pooling: one of ``ENCODER_POOLINGS``.
        normalize: give vectors of length 1.
        max_batch_tokens: limit of (texts x longest text) of a batch; decides memory and speed only.
        max_tokens: lowered to what model and tokenizer take.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        normalize: bool = False,
        max_batch_tokens: int = 8192,
        max_tokens: int = 512,
    ) -> None:
        self.model: nn.Module = unwrapped(model).get_encoder() if unwrapped(model).config.is_encoder_decoder else model
        self.tokenizer, self.pooling, self.normalize = tokenizer, pooling, normalize
        self.max_batch_tokens = max_batch_tokens
        self.max_tokens = min(max_tokens, tokenizer.model_max_length, _positions(self.model) or max_tokens)

    def encode(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Vectors of texts, in their order. Returns: float32 [texts, d]."""
        with evaluating(self.model):
            width = int(unwrapped(self.model).config.hidden_size)
            return encode_in_batches(texts, self.tokenize, self._pool, width, self.max_batch_tokens, progress)

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
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "mean":
            vectors = mean_state(hidden, mask)
        elif self.pooling == "max":
            vectors = hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)
        else:
            place = mask.sum(dim=1) - 1 if self.pooling == "lasttoken" else torch.zeros_like(mask[:, 0])
            vectors = hidden[torch.arange(len(hidden), device=place.device), place]
        return F.normalize(vectors, dim=1) if self.normalize else vectors


def _positions(model: nn.Module) -> int | None:
    """Longest input: RoBERTa's table of positions begins behind its padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


def load_text_encoder(
    recipe: EncoderRecipe,
    *,
    device: str | torch.device = "cpu",
    max_batch_tokens: int = 8192,
    max_tokens: int = 4096,
    trust_remote_code: bool = False,
) -> SentenceEncoder:
    """Load the encoder of a recipe, in float32.

    Raises:
        InputError: weights or tokenizer cannot be loaded, or weights are missing.
    """
    options = {"subfolder": recipe.subfolder, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.source, **options)
        model, info = AutoModel.from_pretrained(recipe.source, dtype=torch.float32, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions for a broken tokenizer.json
        raise InputError(
            f"coreset_encoder: {recipe.source} cannot be loaded: {_first_line(error)}; fetch or save it again"
        ) from error
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):  # no vector goes through it
        raise InputError(
            f"coreset_encoder: {recipe.source} lacks {len(missing)} weights, first {missing[0]}; fetch or save it again"
        )
    log.info("coreset_encoder: %s, pooled by %s", recipe.source, recipe.pooling)
    return SentenceEncoder(
        model.to(device),
        tokenizer,
        recipe.pooling,
        recipe.normalize,
        max_batch_tokens,
        min(max_tokens, recipe.max_tokens or max_tokens),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")
