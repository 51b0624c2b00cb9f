"""A training pass of iLoRA against plain LoRA, and against the einsum over experts of the public way.

    python -m benchmarks.speed_ilora [--sections width-384,width-1024] [--repeats 7] [--json out.json]

A pass is forward and backward of a whole model with low-rank updates on all its linear maps, rank 8, four experts. The
public way makes the output of every expert, [rows, tokens, experts, width], and sums them with the gates of the rows;
ours multiplies the rank dimension. How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.harness import Goal, Section, Work, main, random_llama
from recbole_llm.adapter import GateNetwork, ILoraAdapter, LoraAdapter

RANK, EXPERTS, ALPHA, STATE = 8, 4, 32, 64
SIZES = {
    "width-384": {"width": 384, "layers": 4, "rows": 8, "tokens": 96},
    "width-1024": {"width": 1024, "layers": 2, "rows": 8, "tokens": 128},
}
VOCABULARY = 2_000
PLAIN, OURS, PUBLIC = "LoRA (peft)", "iLoRA of ours", "iLoRA, einsum over experts (public way)"


def fill(model: nn.Module) -> nn.Module:
    """Values in place of B's zeros, the same in all models: with zeros no gate would get a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.train()


class EinsumExperts(nn.Module):
    """A linear map with experts, written as the sum it is: y = W x + s * sum over k of w_k B_k A_k x.

    Args:
        base: W.
        A: [r, in], the experts' rows one after the other.
        B: [out, r].
        gates: holds the gates [rows, experts] of the pass that runs.
    """

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, gates: dict[str, Tensor]) -> None:
        super().__init__()
        self.base, self.gates = base, gates
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The map's output [rows, tokens, out]."""
        low_rank = torch.einsum("bti,kri->btkr", x, self.A.unflatten(0, (EXPERTS, -1)))
        experts = torch.einsum("btkr,okr->btko", low_rank, self.B.unflatten(1, (EXPERTS, -1)))
        return self.base(x) + ALPHA / (RANK // EXPERTS) * torch.einsum("btko,bk->bto", experts, self.gates["gates"])


def einsum_model(tuned: nn.Module, width: int, layers: int) -> tuple[PreTrainedModel, GateNetwork, dict[str, Tensor]]:
    """The same model and weights in the public way, its gate network, and what holds the gates of a pass."""
    model, held = random_llama(width, layers, VOCABULARY).requires_grad_(False), {}
    for name, base in list(model.named_modules()):
        if isinstance(base, nn.Linear) and name != "lm_head":
            layer = tuned.get_submodule(f"base_model.model.{name}")
            factors = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, EinsumExperts(base, *factors, held))
    gate = GateNetwork("linear", STATE, EXPERTS)
    gate.load_state_dict(tuned.base_model.lora_gate["default"].state_dict())
    return model.train(), gate, held


def work_of(size: str) -> Callable[[], Work]:
    """The procedures at one of :data:`SIZES`; each returns its loss."""

    def work() -> Work:
        shape = {name: SIZES[size][name] for name in ("width", "layers")}
        options = {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "target_modules": "all"}
        plain = fill(LoraAdapter(**options).attach(random_llama(**shape, vocabulary=VOCABULARY)))
        adapter = ILoraAdapter(**options, num_experts=EXPERTS, representation_size=STATE)
        ours = fill(adapter.attach(random_llama(**shape, vocabulary=VOCABULARY)))
        public, gate, held = einsum_model(ours, **shape)
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(3, VOCABULARY, (SIZES[size]["rows"], SIZES[size]["tokens"]), generator=generator)
        states = 3 * torch.randn(len(ids), STATE, generator=generator)

        def step(model: nn.Module, context: AbstractContextManager[Any]) -> float:
            model.zero_grad(set_to_none=True)
            with context:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            return loss.item()

        def public_step() -> float:
            gate.zero_grad(set_to_none=True)
            held["gates"] = gate(states)
            return step(public, nullcontext())

        return {
            PLAIN: lambda: step(plain, nullcontext()),
            OURS: lambda: step(ours, adapter.instances(ours, states)),
            PUBLIC: public_step,
        }

    return work


def same_losses(results: dict[str, Any]) -> None:
    """Both ways to iLoRA agree, and gates make a difference."""
    assert abs(results[OURS] - results[PUBLIC]) < 1e-4 < abs(results[OURS] - results[PLAIN])


SECTIONS = {
    size: Section(
        f"iLoRA, forward and backward, {size}",
        work_of(size),
        {**sizes, "rank": RANK, "experts": EXPERTS},
        (Goal(PLAIN, OURS, 0.95), Goal(PUBLIC, OURS, 1.1)),
        same_losses,
    )
    for size, sizes in SIZES.items()
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
