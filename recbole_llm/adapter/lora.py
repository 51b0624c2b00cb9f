"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from recbole_llm.adapter.base import Adapter, describe_difference
from recbole_llm.adapter.ranks import SpectraOf, compute_spectra, ranks_by_spectra, spectra_of, target_layers
from recbole_llm.adapter.targets import find_target_modules
from recbole_llm.declare import Setting
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_SARA = ("sara_threshold", "sara_budget", "sara_r_min", "sara_r_max")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraAdapter(Adapter):
    """Every chosen linear map W learns a product B A of rank r: W x + alpha / r * B A x. B starts at zero.

    The defaults are those of BIGRec (arXiv 2308.08434) and SOFT (arXiv 2505.20771).

    Attributes:
        r: rank, at least 1.
        alpha: scale, above 0.
        dropout: dropout of the input of A, in [0, 1).
        target_modules: "auto" for the query and value projections, "all" for every linear map but the output embedding,
            or the last parts of module names.
        rank_rule: ``fixed``, r everywhere; or ``sara`` (arXiv 2408.03290): each matrix gets as many ranks as its
            largest singular values take to make up a share of their sum. Every rank's scale stays alpha / r.
        sara_threshold: the share of the sum of singular values.
        sara_budget: ranks in all, in place of the share: the largest share whose ranks fit is taken. With neither, the
            budget is r for each matrix.
        sara_r_min: least rank of a matrix.
        sara_r_max: largest rank of a matrix.
        seed: seed of A's initial values; the global random state is left as it was.
        spectra: remembers singular values; :meth:`with_spectra` sets it.

    Example:
        >>> LoraAdapter.from_settings({"lora_r": 16}).r
        16
        >>> LoraAdapter(r=0)
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: lora_r: 0 is not allowed; give an integer >= 1 and <= 4096
    """

    r: Annotated[int, Setting("rank of LoRA", low=1, high=4096)] = 8
    alpha: Annotated[
        float, Setting("scale of LoRA", above=0, note="its update is multiplied by lora_alpha / lora_r")
    ] = 16
    dropout: Annotated[float, Setting("dropout before LoRA", low=0, below=1)] = 0.05
    target_modules: Annotated[
        str | Sequence[str],
        Setting(
            "names of the linear layers that get LoRA",
            note="auto takes query and value, all takes every one but the head",
        ),
    ] = "auto"
    rank_rule: Annotated[
        str,
        Setting(
            "rank of each matrix",
            choices={"fixed": "lora_r everywhere", "sara": "by the matrix's singular values"},
        ),
    ] = "fixed"
    sara_threshold: Annotated[
        float | None,
        Setting(
            "share of the sum of singular values that a rank must reach",
            above=0,
            high=1,
            null="uses sara_budget",
            scope="sara",
            key="sara_threshold",
        ),
    ] = None
    sara_budget: Annotated[
        int | None,
        Setting("ranks of all matrices together", low=1, null="is lora_r for each", scope="sara", key="sara_budget"),
    ] = None
    sara_r_min: Annotated[
        int, Setting("smallest rank of a matrix", low=1, high=4096, scope="sara", key="sara_r_min")
    ] = 1
    sara_r_max: Annotated[
        int | None,
        Setting(
            "largest rank of a matrix", low=1, high=65_536, null="is its smaller side", scope="sara", key="sara_r_max"
        ),
    ] = None
    seed: int = 0
    spectra: SpectraOf = field(default=compute_spectra, repr=False, compare=False)

    name: ClassVar[str] = "lora"
    starts_at_zero: ClassVar[str] = "lora_B"
    """Part of the names of the weights that are zero until something is learned."""
    checked_settings: ClassVar[tuple[str, ...]] = ("r", "lora_alpha")
    """Of peft's configuration, what is compared on loading: the scale, for one, shows nowhere in the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [key for key in ("sara_threshold", "sara_budget", "sara_r_max") if getattr(self, key) is not None]
        if self.rank_rule != "sara" and given:
            raise InputError(
                given[0],
                f"only applies to lora_rank_rule: sara (got {self.rank_rule}); leave it out",
                kind="conflict",
            )
        if self.sara_threshold is not None and self.sara_budget is not None:
            raise InputError(
                "sara_budget", "a budget finds the threshold itself; leave out sara_threshold", kind="conflict"
            )
        if self.sara_r_max is not None and self.sara_r_max < self.sara_r_min:
            raise InputError(
                "sara_r_max", f"{self.sara_r_max} is below sara_r_min, {self.sara_r_min}; raise it", kind="conflict"
            )

    @property
    def needs_spectra(self) -> bool:  # type: ignore[override]
        """See :class:`Adapter`."""
        return self.rank_rule == "sara"

    def with_spectra(self, remember: SpectraOf) -> LoraAdapter:
        """See :class:`Adapter`."""
        return replace(self, spectra=remember)

    def attach(self, model: PreTrainedModel) -> PeftModel:
        """Freeze the LLM and add the low-rank maps, in float32 whatever the LLM's own number type is.

        Raises:
            InputError: a name of `target_modules` matches no linear map of the model.
        """
        import torch
        from peft import get_peft_model

        targets = find_target_modules(model, self.target_modules)
        # Of a quantised LLM, norms and head keep the number type they were loaded in: peft's preparation would copy
        # them, and an embedding of 128,000 tokens, into float32. Checkpointing is on already, and not reentrant.
        model.requires_grad_(False)
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

    def _peft_config(self, model: PreTrainedModel, targets: list[str]) -> PeftConfig:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            **self._patterns(model, targets),
        )

    def _patterns(self, model: PreTrainedModel, targets: list[str]) -> dict[str, dict[str, Any]]:
        """peft's ranks of single modules, and the alphas that keep every rank's scale; none under the fixed rule."""
        if self.rank_rule != "sara":
            return {}
        layers = target_layers(model, targets)
        spectra = self.spectra(list(layers), lambda: spectra_of(layers))
        limits = (self.sara_threshold, self.sara_budget, self.sara_r_min, self.sara_r_max)
        found = ranks_by_spectra(spectra, self.r, *limits)
        ranks = {f"^{re.escape(name)}": self._stacked(rank) for name, rank in found.items()}
        log.info("lora_rank_rule: sara gives %d matrices %d ranks.", len(ranks), sum(ranks.values()))
        scale = self.alpha / self._stacked(self.r)
        return {"rank_pattern": ranks, "alpha_pattern": {name: scale * rank for name, rank in ranks.items()}}

    def _stacked(self, rank: int) -> int:
        """Ranks of a layer for the rank that a rule gives a matrix: adapters of several experts have more."""
        return rank

    @contextmanager
    def untuned(self, model: PeftModel) -> Iterator[nn.Module]:
        """A context whose model has its low-rank maps switched off: the untuned LLM."""
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
            **({key: getattr(self, key) for key in ("rank_rule", *_SARA)} if self.needs_spectra else {}),
        }

    def _save_weights(self, model: PeftModel, folder: Path) -> None:
        self._check_learned(_peft_state(model), folder)
        model.save_pretrained(str(folder), save_embedding_layers=False)

    def _load_weights(self, model: PeftModel, folder: Path) -> None:
        import torch
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights

        self._check_settings(model.peft_config[model.active_adapter], folder)
        state = load_peft_weights(str(folder), device="cpu")
        if difference := describe_difference(state, _peft_state(model)):
            raise InputError(
                f"adapter {folder}: its weights do not fit the model: {difference}; train again", kind="file"
            )
        self._check_learned(state, folder)
        set_peft_model_state_dict(model, state)
        for name, loaded in _peft_state(model).items():
            if not torch.equal(loaded.cpu(), state[name].to(loaded.dtype)):
                raise InputError(
                    f"adapter {folder}: {name} was not loaded into the model; report this with your peft version",
                    kind="environment",
                )

    def _check_settings(self, attached: PeftConfig, folder: Path) -> None:
        """Refuse an adapter that was trained with other settings than those of the attached one."""
        from peft import PeftConfig

        try:
            saved = PeftConfig.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"adapter {folder}: no readable adapter_config.json; copy the folder again or retrain", kind="file"
            ) from error
        for key in self.checked_settings:
            if getattr(saved, key) != getattr(attached, key):
                raise InputError(
                    f"adapter {folder}: it was trained with {key} {getattr(saved, key)}, not {getattr(attached, key)}; "
                    "use the same setting",
                    kind="conflict",
                )

    def _check_learned(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """If what starts at zero still is, nothing was learned, and the LLM would answer untuned without a sign."""
        if not any(tensor.any() for name, tensor in state.items() if self.starts_at_zero in name):
            what = self.starts_at_zero.removeprefix("lora_")
            raise InputError(
                f"adapter {folder}: it is empty, every {what} is zero; train it for at least one step", kind="file"
            )


def _peft_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under the names peft gives them in a file."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return state
