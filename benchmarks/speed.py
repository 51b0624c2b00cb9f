"""Speed and memory against the ordinary procedure, both measured in the same run.

    python -m benchmarks.speed [--sections loss,beam,texts,ranks] [--repeats 7] [--json out.json]

How time and memory are measured is said in ``benchmarks/harness.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.harness import Goal, Section, Work, main, random_llama
from recbole_llm.grounding import ItemIndex
from recbole_llm.llm import answer_loss, beam_search
from recbole_llm.llm.encoder import encode_in_batches
from recbole_llm.llm.rows import length_batches, pad_batch

N_LAYERS, WIDTH = 4, 256

LOSS = {"vocabulary": 32_000, "rows": 8, "prompt": 100, "answer": 12}
BEAM = {"vocabulary": 8_000, "rows": 16, "prompt": 100, "of it shared": 60, "answer": 12, "beams": 4}
TEXTS = {"vocabulary": 8_000, "texts": 1_500, "median length": 5, "tokens of a batch": 16_384}
RANKS = {"items": 20_000, "queries": 512, "width": 256}


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A random Llama in fp32, its weights large enough for the answers of beam search to be no near-ties."""
    return random_llama(WIDTH, N_LAYERS, vocab_size, max_position_embeddings=512, initializer_range=0.06)


def loss_work() -> Work:
    """One forward and backward pass of the loss on the answers."""
    model = make_model(LOSS["vocabulary"]).train()
    ids = torch.randint(3, LOSS["vocabulary"], (LOSS["rows"], LOSS["prompt"] + LOSS["answer"]))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, : LOSS["prompt"]] = -100
    positions = torch.arange(ids.shape[1]).expand_as(ids)

    def backward(loss: Tensor) -> float:
        model.zero_grad()
        loss.backward()
        return loss.item()

    return {
        "logits everywhere": lambda: backward(
            model(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, use_cache=False).loss
        ),
        "logits at answers": lambda: backward(answer_loss(model, ids, mask, labels, positions)),
    }


def beam_work() -> Work:
    """Beam search of as many steps as the answer has tokens: EOS is forbidden."""
    model, vocab_size = make_model(BEAM["vocabulary"]).eval(), BEAM["vocabulary"]
    n_new, n_beams = BEAM["answer"], BEAM["beams"]
    ids = torch.randint(3, vocab_size, (BEAM["rows"], BEAM["prompt"]))
    ids[:, : BEAM["of it shared"]] = ids[0, : BEAM["of it shared"]]

    def generate() -> list[list[int]]:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=n_beams,
            max_new_tokens=n_new,
            do_sample=False,
            early_stopping=False,
            suppress_tokens=[2],
        )
        return output[:, ids.shape[1] :].tolist()

    def search(share_prefix: bool) -> list[list[int]]:
        found = beam_search(
            model,
            ids.tolist(),
            eos_token_id=2,
            pad_token_id=0,
            num_beams=n_beams,
            max_new_tokens=n_new,
            forbidden_token_ids=[2],
            max_batch_tokens=ids.shape[0] * n_beams * (ids.shape[1] + n_new),  # one batch, like generate
            share_prefix=share_prefix,
        )
        return [generation.token_ids for generation in found]

    return {
        "generate": generate,
        "beam_search": lambda: search(share_prefix=False),
        "beam_search, prefix shared": lambda: search(share_prefix=True),
    }


def texts_work() -> Work:
    """Vectors of texts as short and uneven as titles, in batches of at most so many tokens."""
    model, budget = make_model(TEXTS["vocabulary"]).eval(), TEXTS["tokens of a batch"]
    sizes = torch.randn(TEXTS["texts"]).mul(0.6).exp().mul(TEXTS["median length"]).ceil().int().tolist()
    token_ids = {str(i): torch.randint(3, TEXTS["vocabulary"], (size,)).tolist() for i, size in enumerate(sizes)}

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [token_ids[text] for text in texts]

    def pool(rows: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = pad_batch(rows, 2, "cpu", left=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state[:, -1]

    def full_batches(order: Sequence[str]) -> Tensor:
        rows, found, place = tokenize(order), torch.empty(len(order), WIDTH), {text: i for i, text in enumerate(order)}
        with torch.no_grad():
            for batch in length_batches(list(map(len, rows)), budget, "as given"):
                found[batch] = pool([rows[index] for index in batch])
        return found[[place[text] for text in token_ids]]

    longest_first = sorted(token_ids, key=lambda text: -len(token_ids[text]))
    return {
        "full batches": lambda: full_batches(list(token_ids)),
        "full batches, longest first": lambda: full_batches(longest_first),
        "encode_in_batches": lambda: torch.from_numpy(
            encode_in_batches(list(token_ids), tokenize, pool, WIDTH, max_batch_tokens=budget)
        ),
    }


def ranks_work() -> Work:
    """The rank of one target per query among all items; building the index counts as well."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(RANKS["items"], RANKS["width"], generator=generator)
    targets = torch.randint(1, RANKS["items"], (RANKS["queries"],), generator=generator)
    queries = items[targets] + torch.randn(RANKS["queries"], RANKS["width"], generator=generator)
    rankable = torch.ones(RANKS["items"], dtype=torch.bool)

    def two_argsorts() -> Tensor:
        ranks = torch.cdist(queries, items).argsort(dim=1).argsort(dim=1)
        return ranks.gather(1, targets[:, None]).squeeze(1)

    return {
        "cdist, two argsorts": two_argsorts,
        "ItemIndex.rank_of": lambda: ItemIndex(items, rankable=rankable).rank_of(queries, targets),
    }


def same_losses(results: dict[str, Any]) -> None:
    """Both losses are the same."""
    first, second = results.values()
    assert abs(first - second) < 1e-4, results


def same_texts(results: dict[str, Any]) -> None:
    """All searches end in the same tokens."""
    first, *others = results.values()
    assert all(text == first for text in others), "the searches disagree"


def same_vectors(results: dict[str, Any]) -> None:
    """All vectors are the same, but for rounding."""
    first, *others = results.values()
    assert all(torch.allclose(vectors, first, atol=1e-4) for vectors in others), "the vectors disagree"


def same_ranks(results: dict[str, Any]) -> Mapping[str, Any]:
    """The ranks are equal but where float32 distances swap neighbours now and then."""
    first, second = results.values()
    same = (first == second).float().mean().item()
    assert same > 0.99, same
    return {"equal ranks": same}


LAYERS = N_LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 3 * WIDTH)
HEAD = WIDTH * LOSS["vocabulary"]
SECTIONS = {
    "loss": Section(
        "loss, forward and backward",
        loss_work,
        LOSS | {"layers": N_LAYERS, "width": WIDTH, "output head / matrix products": HEAD / (HEAD + LAYERS)},
        (Goal("logits everywhere", "logits at answers", 2.0),),
        same_losses,
    ),
    "beam": Section(
        "beam search",
        beam_work,
        BEAM | {"layers": N_LAYERS, "width": WIDTH},
        (Goal("generate", "beam_search", 1.5), Goal("generate", "beam_search, prefix shared", 1.5)),
        same_texts,
    ),
    "texts": Section(
        "vectors of texts",
        texts_work,
        TEXTS | {"layers": N_LAYERS, "width": WIDTH},
        (Goal("full batches", "encode_in_batches", 2.0), Goal("full batches, longest first", "encode_in_batches", 1.5)),
        same_vectors,
    ),
    "ranks": Section(
        "exact ranks", ranks_work, RANKS, (Goal("cdist, two argsorts", "ItemIndex.rank_of", 5.0),), same_ranks
    ),
}

if __name__ == "__main__":
    main(__doc__, SECTIONS)
