"""Number types by the device, without a GPU: what PyTorch would be asked and told, and what half precision keeps."""

from __future__ import annotations

import pytest
import torch

from recbole_llm.adapter import FullAdapter, LoraAdapter
from recbole_llm.llm import precision
from recbole_llm.llm.loss import answer_loss
from recbole_llm.llm.precision import resolve_dtype, use_tensor_cores
from recbole_llm.model.backbones import computes_in_half, number_facts
from tests.families import make_family

IDS = torch.tensor([[1, 40, 41, 42, 43]])
LABELS = torch.tensor([[-100, -100, 41, 42, 43]])


@pytest.mark.parametrize(("knows_bf16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_goes_by_the_device(monkeypatch, knows_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: knows_bf16)
    assert resolve_dtype("auto", "cuda:0") == expected and resolve_dtype("auto", torch.device("cpu")) == "float32"
    assert [resolve_dtype(name, "cuda") for name in ("float16", "saved")] == ["float16", "saved"]


def test_tensor_cores_are_a_gpus(monkeypatch):
    told = list[str]()
    monkeypatch.setattr(precision.torch, "set_float32_matmul_precision", told.append)
    use_tensor_cores("cpu")
    assert not told
    use_tensor_cores(torch.device("cuda", 1))
    assert told == ["high"]


def settings(**changed: object) -> dict[str, object]:
    usual = {"llm_dtype": "auto", "quant": None, "enable_amp": False, "adapter": "lora", "device": torch.device("cpu")}
    return {**usual, **changed}


def test_what_a_stage_depends_on_is_the_number_type_that_is_meant(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    facts = number_facts(settings())  # type: ignore[arg-type]
    assert facts == number_facts(settings(llm_dtype="float32")) == {"dtype": "float32", "quant": None}  # type: ignore[arg-type]
    on_gpu = settings(device=torch.device("cuda"))
    assert number_facts(on_gpu) == {"dtype": "bfloat16", "quant": None}  # type: ignore[arg-type]
    assert not computes_in_half(on_gpu)  # type: ignore[arg-type]  # it does so by its weights
    assert computes_in_half(settings(enable_amp=True))  # type: ignore[arg-type]
    whole = settings(adapter="full", llm_dtype="bfloat16")
    assert computes_in_half(whole) and number_facts(whole)["trained in"] == "float32"  # type: ignore[arg-type]
    assert not computes_in_half(settings(adapter="full"))  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_norms_and_head_of_a_quantised_llm_stay_as_they_were_loaded(checkpointing):
    model = make_family("llama")[0].to(torch.bfloat16)
    model.is_quantized = True  # a stand-in: what bitsandbytes changes are the linear maps
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tuned = LoraAdapter(dropout=0.0).attach(model).train()
    kinds = {name: weight.dtype for name, weight in tuned.named_parameters() if "lora_" not in name}
    assert set(kinds.values()) == {torch.bfloat16} and any("norm" in name for name in kinds)
    learning = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert learning and all("lora_" in name and weight.dtype == torch.float32 for name, weight in learning.items())
    answer_loss(tuned, IDS, torch.ones_like(IDS), LABELS).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in learning.values())
    assert any(weight.grad.any() for weight in learning.values())


def test_full_fine_tuning_of_half_precision_learns_steps_that_it_would_round_away():
    model = make_family("llama")[0].to(torch.bfloat16)
    before = model(IDS).logits.detach()
    adapter = FullAdapter()
    tuned = adapter.attach(model)
    assert {weight.dtype for weight in tuned.parameters()} == {torch.float32}
    with adapter.untuned(tuned) as untuned, torch.no_grad():
        assert next(untuned.parameters()).dtype == torch.bfloat16
        assert torch.equal(untuned(IDS).logits, before)
        assert not any(weight.requires_grad for weight in untuned.parameters())
    weight = tuned.get_input_embeddings().weight
    start = weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        answer_loss(tuned, IDS, torch.ones_like(IDS), LABELS).backward()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1e-4)
    optimizer.step()
    moved = weight.detach() != start
    lost = moved & (weight.detach().bfloat16() == start.bfloat16())  # where bfloat16 would have stood still
    assert int(lost.sum()) > int(moved.sum()) / 2 > 0


def test_the_untuned_copy_waits_on_the_cpu(monkeypatch):
    """On the meta device in place of a GPU: what is moved there and back."""
    model = make_family("llama")[0]
    adapter = FullAdapter()
    tuned = adapter.attach(model).to("meta")
    assert adapter._untuned is not None
    moves, to = list[str](), type(adapter._untuned).to

    def move(self: torch.nn.Module, device: object) -> torch.nn.Module:
        moves.append(str(device))
        return self if str(device) == "meta" else to(self, device)

    monkeypatch.setattr(type(adapter._untuned), "to", move)
    with adapter.untuned(tuned) as untuned:
        assert moves == ["meta"]
    assert moves == ["meta", "cpu"] and next(untuned.parameters()).device.type == "cpu"
