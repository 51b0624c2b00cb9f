"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from recbole_llm.adapter.base import Adapter, describe_difference
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# Names of the query and value projections, alone or fused with the key, in the families transformers knows.
_QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
)
# State-space families: their fused kernels read this map's weight past any adapter, so peft refuses it.
_STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_READ_BY_KERNELS = "out_proj"


@dataclass(frozen=True)
class LoraAdapter(Adapter):
    """Every chosen linear map W learns a product B A of rank r: W x + alpha / r * B A x. B starts at zero.

    The defaults are those of BIGRec (arXiv 2308.08434) and SOFT (arXiv 2505.20771).

    Attributes:
        r: rank, at least 1.
        alpha: scale, above 0.
        dropout: of the input of A, in [0, 1).
        target_modules: "auto" for the query and value projections, "all" for every linear map but the output embedding,
            or the last parts of module names.
        seed: of A's initial values; the global random state is left as it was.

    Example:
        >>> LoraAdapter.from_settings({"lora_r": 16}).r
        16
        >>> LoraAdapter(r=0)
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: lora_r: 0 is not allowed; give an integer >= 1
    """

    r: Annotated[int, Setting("rank of LoRA", low=1)] = 8
    alpha: Annotated[
        float, Setting("scale of LoRA", above=0, note="its update is multiplied by lora_alpha / lora_r")
    ] = 16
    dropout: Annotated[float, Setting("dropout before LoRA", low=0, below=1)] = 0.05
    target_modules: Annotated[
        str | Sequence[str],
        Setting(
            "names of the linear maps that get LoRA",
            note="auto takes query and value, all takes every one but the head",
        ),
    ] = "auto"
    seed: int = 0

    name: ClassVar[str] = "lora"

    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Freeze the LLM and add the low-rank maps, in float32 whatever the LLM's own number type is.

        Raises:
            InputError: a name of `target_modules` matches no linear map of the model.
        """
        import torch
        from peft import get_peft_model, prepare_model_for_kbit_training

        targets = find_target_modules(model, self.target_modules)
        if getattr(model, "is_quantized", False):
            model = prepare_model_for_kbit_training(
                model, model.is_gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        config = self._peft_config(model, targets)
        with torch.random.fork_rng(devices=[]):  # peft draws on the CPU
            torch.default_generator.manual_seed(self.seed)
            try:
                return get_peft_model(model, config)
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"{self.name} cannot be attached to {type(model).__name__}: {reason}", kind="conflict"
                ) from error

    def _peft_config(self, model: PreTrainedModel, targets: str | list[str]) -> PeftConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )

    @contextmanager
    def untuned(self, model: PeftModel) -> Iterator[nn.Module]:
        """The same module with its low-rank maps switched off inside the context."""
        with model.disable_adapter():
            yield model

    def facts(self) -> dict[str, Any]:
        """Kind and settings."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return {
            "adapter": self.name,
            "r": self.r,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "target_modules": targets,
            "seed": self.seed,
        }

    def _save_weights(self, model: PeftModel, folder: Path) -> None:
        _check_learned(_peft_state(model), folder)
        model.save_pretrained(str(folder), save_embedding_layers=False)

    def _load_weights(self, model: PeftModel, folder: Path) -> None:
        import torch
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights

        _check_settings(model.peft_config[model.active_adapter], folder)
        state = load_peft_weights(str(folder), device="cpu")
        if difference := describe_difference(state, _peft_state(model)):
            raise InputError(
                f"adapter {folder}: its weights do not fit the model: {difference}; train again", kind="file"
            )
        _check_learned(state, folder)
        set_peft_model_state_dict(model, state)
        for name, loaded in _peft_state(model).items():
            if not torch.equal(loaded.cpu(), state[name].to(loaded.dtype)):
                raise InputError(
                    f"adapter {folder}: {name} was not loaded into the model; report this with your peft version",
                    kind="environment",
                )


def find_target_modules(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """Names for peft's `target_modules`.

    Args:
        model: the bare LLM.
        wanted: see :class:`LoraAdapter`.

    Raises:
        InputError: a name matches no linear map; names some that would.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    endings = {name.rpartition(".")[2] for name in linear}
    kind: str = model.config.model_type
    if wanted == "auto":
        for names in _QUERY_VALUE:
            if endings.issuperset(names):
                return list(names)
        if kind in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING and kind not in _STATE_SPACE:
            return list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])
    if wanted in ("auto", "all"):  # by name: peft's "all-linear" would take stacked experts too, which know no dropout
        head = model.get_output_embeddings()
        left = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
        return sorted(endings - left - ({_READ_BY_KERNELS} if kind in _STATE_SPACE else set()))
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in chosen:
        if not any(full == name or full.endswith(f".{name}") for full in linear):
            raise InputError(
                "lora_target_modules",
                f"{name!r} is not a linear layer of the LLM; choose from {', '.join(sorted(endings))}",
                kind="unknown",
            )
    return chosen


def _peft_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under the names peft gives them in a file."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return state


def _check_learned(state: Mapping[str, Tensor], folder: Path) -> None:
    """B starts at zero: if it still is, nothing was learned, and the LLM would answer untuned without a sign of it."""
    if not any(tensor.any() for name, tensor in state.items() if "lora_B" in name):
        raise InputError(f"adapter {folder}: it is empty, every B is zero; train it for at least one step", kind="file")


def _check_settings(attached: PeftConfig, folder: Path) -> None:
    """Rank and targets show in shapes and names; the scale shows nowhere in the weights."""
    from peft import PeftConfig

    try:
        saved = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"adapter {folder}: no readable adapter_config.json; copy the folder again or retrain", kind="file"
        ) from error
    for key in ("r", "lora_alpha"):
        if getattr(saved, key) != getattr(attached, key):
            raise InputError(
                f"adapter {folder}: it was trained with {key} {getattr(saved, key)}, not {getattr(attached, key)}; "
                "use the same setting",
                kind="conflict",
            )
