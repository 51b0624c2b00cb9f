import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.loss import IGNORE_INDEX, answer_log_probs, answer_loss, logits_at, positions_from_mask
from tests.families import FAMILIES, make_family

PROMPTS, ANSWERS = (9, 4, 6, 12), (3, 5, 1, 2)
SMALL = {
    "vocab_size": 301,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


def make_batch(vocab_size, side="left", rows=range(4), extra_padding=0):
    """Rows of a prompt and an answer each; a row's tokens do not depend on which other rows there are."""
    sequences = []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        ids = torch.randint(3, vocab_size, (PROMPTS[row] + ANSWERS[row],), generator=generator)
        labels = ids.clone()
        labels[: PROMPTS[row]] = IGNORE_INDEX
        sequences.append((ids, torch.ones_like(ids), labels))
    width = max(len(ids) for ids, _, _ in sequences) + extra_padding

    def pad(tensor, value):
        missing = width - len(tensor)
        return torch.nn.functional.pad(tensor, (missing, 0) if side == "left" else (0, missing), value=value)

    columns = zip(
        *[(pad(ids, 0), pad(mask, 0), pad(labels, IGNORE_INDEX)) for ids, mask, labels in sequences], strict=True
    )
    return tuple(torch.stack(column) for column in columns)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own_loss(model, ids, mask, labels):
    """Hugging Face's loss, from the logits of all positions."""
    return model(input_ids=ids, attention_mask=mask, position_ids=positions_from_mask(mask), labels=labels).loss


def largest_tensor(compute):
    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.numel())
            return out

    with Watch() as watch:
        compute()
    return watch.largest


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_models_own(family, side):
    model, tokenizer = make_family(family)
    batch = make_batch(len(tokenizer), side)
    expected, loss = own_loss(model, *batch), answer_loss(model, *batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    ours, theirs = gradients(model, loss), gradients(model, own_loss(model, *batch))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_each_row_alone(family):
    model, tokenizer = make_family(family)
    for side in ("left", "right"):
        log_probs, rows = answer_log_probs(model, *make_batch(len(tokenizer), side, extra_padding=3))
        assert rows.tolist() == [row for row in range(4) for _ in range(ANSWERS[row])]
        for row in range(4):
            ids, _, _ = make_batch(len(tokenizer), rows=[row])
            everything = model(input_ids=ids).logits.log_softmax(-1)[0, PROMPTS[row] - 1 : -1]
            expected = everything.gather(1, ids[0, PROMPTS[row] :, None])[:, 0]
            torch.testing.assert_close(log_probs[rows == row], expected, atol=1e-4, rtol=1e-5)


def test_a_permutation_of_the_rows_permutes_the_log_probs():
    model, tokenizer = make_family("gpt2")
    order = [2, 0, 3, 1]
    log_probs, rows = answer_log_probs(model, *make_batch(len(tokenizer)))
    permuted, permuted_rows = answer_log_probs(model, *make_batch(len(tokenizer), rows=order))
    for place, row in enumerate(order):
        torch.testing.assert_close(permuted[permuted_rows == place], log_probs[rows == row], atol=1e-5, rtol=1e-5)


def test_sums_over_micro_batches_make_the_mean_of_the_batch():
    model, tokenizer = make_family("llama")
    parts = [answer_log_probs(model, *make_batch(len(tokenizer), rows=rows))[0] for rows in ([0], [1, 2], [3])]
    mean = -sum(part.sum() for part in parts) / sum(len(part) for part in parts)
    assert mean.item() == pytest.approx(answer_loss(model, *make_batch(len(tokenizer))).item(), abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_has_the_size_of_all_logits(family, checkpointing):
    model, tokenizer = make_family(family)
    batch = make_batch(len(tokenizer), extra_padding=40)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    all_logits = batch[0].numel() * len(tokenizer)
    assert largest_tensor(lambda: own_loss(model, *batch).backward()) >= all_logits
    assert largest_tensor(lambda: answer_loss(model, *batch).backward()) < all_logits


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)),
        lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    ],
    ids=["capped", "scaled"],
)
def test_what_a_model_does_to_its_logits_is_part_of_the_loss(make_model):
    torch.manual_seed(0)
    model = make_model().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # tied: large logits, so that the cap bites
    batch = make_batch(301)
    assert answer_loss(model, *batch).item() == pytest.approx(own_loss(model, *batch).item(), abs=1e-5)


def test_gradient_checkpointing_and_lora_change_neither_loss_nor_gradients():
    results = []
    for checkpointing in (False, True):
        model, tokenizer = make_family("llama")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned = LoraAdapter(dropout=0.0).attach(model).train()
        loss = answer_loss(tuned, *make_batch(len(tokenizer)))
        results.append((loss.item(), gradients(tuned, loss)))
    (plain, plain_gradients), (checkpointed, checkpointed_gradients) = results
    assert checkpointed == pytest.approx(plain, abs=1e-6)
    assert len(plain_gradients) == 8 and plain_gradients.keys() == checkpointed_gradients.keys()
    assert any(gradient.any() for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient)


def test_log_probs_of_a_bfloat16_model_are_float32():
    model, tokenizer = make_family("qwen2")
    log_probs, _ = answer_log_probs(model.to(torch.bfloat16), *make_batch(len(tokenizer)))
    assert log_probs.dtype == torch.float32


def test_a_ready_4d_mask_reaches_the_model():
    """Two answers as branches: positions restart, the second answer does not see the first."""
    model, _ = make_family("llama")
    prompt, first, second = [5, 6, 7], [8, 9], [10, 11]
    ids = torch.tensor([prompt + first + second])
    sees = torch.ones(7, 7).tril().bool()
    sees[5:, 3:5] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
    columns = torch.tensor([2, 3, 2, 5])  # the last prompt position starts both answers
    logits = logits_at(model, torch.zeros(4, dtype=torch.long), columns, ids, sees[None, None], positions)
    for answer, found in ((first, logits[:2]), (second, logits[2:])):
        expected = model(input_ids=torch.tensor([prompt + answer])).logits[0, 2:4]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="position_ids"):
        logits_at(model, columns * 0, columns, ids, sees[None, None])


def test_no_answer_is_an_error_and_leaves_the_model_as_it_was():
    model, tokenizer = make_family("llama")
    ids, mask, labels = make_batch(len(tokenizer))
    before = model(input_ids=ids).logits
    with pytest.raises(ValueError, match="no answer token"):
        answer_loss(model, ids, mask, torch.full_like(labels, IGNORE_INDEX))
    with pytest.raises(IndexError):
        logits_at(model, torch.tensor([99]), torch.tensor([0]), ids, mask)
    assert torch.equal(model(input_ids=ids).logits, before)
