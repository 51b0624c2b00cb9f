"""The tiny LLM: an ordinary Hugging Face folder made from item text, the same for the same inputs."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from recbole_llm.llm import tiny_training
from recbole_llm.llm.tiny import TinyLLMConfig, build_tiny_llm, mean_loss, train_tokenizer
from recbole_llm.llm.tiny_corpus import ROUND_PROMPTS, PromptMaker, SharedText, document_rounds, reading_prompts
from tests.processes import forked_python
from tests.refusals import refused

ADJECTIVES = ("Red", "Silent", "Lost", "Golden", "Broken", "Last")
NOUNS = ("River", "Castle", "Dragon", "Summer", "Train")
GENRES = ("Comedy", "Drama", "Horror", "Western", "Sci-Fi")
TITLES = [""] + [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
ATTRIBUTES = [[]] + [[GENRES[j], str(1990 + i)] for i in range(len(ADJECTIVES)) for j in range(len(NOUNS))]
HEADER = "The user has watched these movies: "
FOOTER = "\n### Response:\n"
HISTORY = 6
SMALL = TinyLLMConfig(
    vocab_size=600, hidden_size=48, n_layers=2, n_heads=2, context_length=128, steps=260, batch_tokens=768, seed=7
)


def compose(tokenizer: PreTrainedTokenizerBase) -> PromptMaker:
    """Header, quoted titles, footer; each piece tokenised alone."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    quoted = [encode(f'"{title}"') for title in TITLES]

    def make_prompt(history: list[int], answer: int) -> tuple[list[int], list[int]]:
        listed = [token for n, item in enumerate(history) for token in (encode(", ") if n else []) + quoted[item]]
        prompt = [tokenizer.bos_token_id, *encode(HEADER), *listed, *encode(FOOTER)]
        return prompt, [*quoted[answer], tokenizer.eos_token_id]

    return make_prompt


def build(folder: Path, config: TinyLLMConfig = SMALL, **changes: object) -> Path:
    arguments = {"titles": TITLES, "attributes": ATTRIBUTES, "template_texts": [HEADER, FOOTER], "compose": compose}
    return build_tiny_llm(folder, **{**arguments, "history_length": HISTORY, "config": config, **changes})


def short(**changes: object) -> TinyLLMConfig:
    return TinyLLMConfig(**{**vars(SMALL), "steps": 3, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_same_seed_gives_bit_equal_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, again = weights(build(tmp_path / "a", short())), weights(build(tmp_path / "b", short()))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = weights(build(tmp_path / "c", short(seed=8)))
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("proj.weight"))


def test_a_killed_pre_training_goes_on_after_its_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed twice, it has computed no step twice, and the weights are those of one that was not, to the bit."""
    config, states, steps = short(steps=7), tmp_path / "states", []
    compute = tiny_training._next_token_loss

    def dying(model: object, *batch: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            steps.append(len(steps))
            if len(steps) in (3, 6):
                raise KeyboardInterrupt
        return compute(model, *batch)

    whole = weights(build(tmp_path / "whole", config))
    monkeypatch.setattr(tiny_training, "_next_token_loss", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "killed", config, states=states, minutes=0)
    found = weights(build(tmp_path / "killed", config, states=states, minutes=0))
    assert len(steps) == 7 + 2  # those that the kills were in are computed anew
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_global_random_state_neither_matters_nor_changes(tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = weights(build(tmp_path / "a", short()))
    torch.set_rng_state(torch.tensor(before[2], dtype=torch.uint8))
    build(tmp_path / "a", short())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    torch.manual_seed(2)
    second = weights(build(tmp_path / "b", short()))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_folder_loads_in_a_new_process_with_equal_logits(folder: Path) -> None:
    program = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "ids = tokenizer('Lost Dragon', return_tensors='pt')['input_ids']\n"
        "print(json.dumps([type(model).__name__, ids.tolist(), model(ids).logits[0, -1].tolist()]))\n"
    )
    done = forked_python(program, folder)
    name, ids, logits = json.loads(done.stdout.splitlines()[-1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert name == "LlamaForCausalLM"
    assert ids == [[tokenizer.bos_token_id, *encode(tokenizer, "Lost Dragon")]]
    torch.testing.assert_close(torch.tensor(logits), model(torch.tensor(ids)).logits[0, -1].detach())


def test_special_tokens_agree_in_model_and_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, name) == getattr(model.generation_config, name) == getattr(tokenizer, name)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.unk_token_id is None
    assert model.config.vocab_size == len(tokenizer) <= SMALL.vocab_size


@given(text=st.text(max_size=40))
@settings(max_examples=50)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text", ["七人の侍", "Амели 🎬👩‍🚀", "tab\tand\nline \u00a0 ", "Foo ! , 's", '""', "</s><s><pad>", ""]
)
def test_awkward_text_round_trips_without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    token_ids = encode(tokenizer, text)
    assert tokenizer.decode(token_ids) == text
    assert not set(token_ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("n_words", [0, 3000])
def test_yes_and_no_are_single_tokens_in_the_smallest_vocabulary(n_words: int) -> None:
    words = np.random.default_rng(0).integers(97, 123, (n_words, 8)).astype(np.uint8)
    texts = ["A", *(bytes(word).decode() * 3 for word in words)]
    tokenizer = train_tokenizer(texts, [HEADER], TinyLLMConfig(vocab_size=512))
    assert all(len(encode(tokenizer, word)) == 1 for word in ("Yes", "No", " Yes", " No"))


def test_template_words_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    header = ["The", " user", " has", " watched", " these", " movies", ":", " "]
    footer = ["\n", "###", " Response", ":", "\n"]
    assert ("".join(header), "".join(footer)) == (HEADER, FOOTER)
    for text, words in ((HEADER, header), (FOOTER, footer)):
        assert [tokenizer.decode(token) for token in encode(tokenizer, text)] == words


def test_a_title_has_the_same_tokens_bare_and_quoted(tokenizer: PreTrainedTokenizerBase) -> None:
    quote = encode(tokenizer, '"')
    for title in [*TITLES[1:], "Ends with a dot.", "(1995)", "!"]:
        assert encode(tokenizer, f'"{title}"') == quote + encode(tokenizer, title) + quote


def test_answers_are_quoted_catalogue_titles_that_end(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    make_prompt, draws = compose(tokenizer), np.random.default_rng(0)
    for _ in range(5):
        prompt = torch.tensor([make_prompt(draws.integers(1, len(TITLES), 3).tolist(), 1)[0]])
        generated = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert generated[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(generated[:-1]) in {f'"{title}"' for title in TITLES[1:]}


def test_state_of_a_bare_title_predicts_its_attributes(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    genres = [encode(tokenizer, f" {genre}")[0] for genre in GENRES]
    with torch.no_grad():
        logits = [model(**tokenizer(title, return_tensors="pt")).logits[0, -1, genres] for title in TITLES[1:]]
    hits = [GENRES[int(scores.argmax())] == ATTRIBUTES[item][0] for item, scores in enumerate(logits, start=1)]
    assert np.mean(hits) > 0.8


def test_corpus_takes_every_answer_equally_often_after_a_walk_by_shared_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    histories, answers = [], []

    def spy(history: list[int], answer: int) -> tuple[list[int], list[int]]:
        histories.append(history), answers.append(answer)
        return compose(tokenizer)(history, answer)

    rounds = document_rounds(TITLES, ATTRIBUTES, tokenizer, spy, 3, torch.Generator().manual_seed(0))
    first = next(rounds)
    del histories[:-ROUND_PROMPTS], answers[:-ROUND_PROMPTS]  # without the calls that look for the common start
    documents = first + [document for _ in range(5) for document in next(rounds)]
    for token_ids, _ in documents:
        assert token_ids[0] == tokenizer.bos_token_id and token_ids.index(tokenizer.eos_token_id) == len(token_ids) - 1
    header = [tokenizer.bos_token_id, *encode(tokenizer, HEADER), *encode(tokenizer, '"')]
    assert {tuple(token_ids[:given]) for token_ids, given in documents} == {(header[0],), tuple(header)}
    counts = np.bincount(answers, minlength=len(TITLES))
    assert counts[0] == 0 and counts[1:].max() - counts[1:].min() <= 1
    assert {len(history) for history in histories} == {1, 2, 3}
    known = [{*title.split(), *values} for title, values in zip(TITLES, ATTRIBUTES, strict=True)]
    for history, answer in zip(histories, answers, strict=True):
        for before, after in zip(history, [*history[1:], answer], strict=True):
            assert before != after and known[before] & known[after]


@given(
    rows=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    length=st.integers(1, 6),
)
@settings(max_examples=50)
def test_a_walk_shares_something_at_every_step_where_anything_is_shared(
    rows: list[list[str]], seed: int, length: int
) -> None:
    titles = ["", *(f"only{number}" for number in range(len(rows)))]
    shared = SharedText(
        titles, [["a"], *([f" {v.upper()} " if n % 2 else v for n, v in enumerate(row)] for row in rows)]
    )
    generator = torch.Generator().manual_seed(seed)
    for answer in range(1, len(titles)):
        walk = shared.walk(answer, length, generator)
        assert len(walk) == length and 0 not in walk
        for before, after in zip(walk, [*walk[1:], answer], strict=True):
            common = set(rows[before - 1]) & set(rows[after - 1])
            telling = [value for value in common if any(value not in row for row in rows)]
            assert (telling and before != after) or not shared.values[after]


def test_where_titles_share_nothing_every_other_answer_repeats_the_newest_title() -> None:
    shared = SharedText(["", *(f"word{number}" for number in range(50))], [[] for _ in range(51)])
    generator = torch.Generator().manual_seed(0)
    repeats = [shared.walk(1 + draw % 50, 1, generator) == [1 + draw % 50] for draw in range(1000)]
    assert 0.45 < np.mean(repeats) < 0.58


def test_of_a_value_that_many_items_have_each_is_as_likely_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step looks at a few of them, drawn anew every time."""
    monkeypatch.setattr("recbole_llm.llm.tiny_corpus.LOOKED_AT", 5)
    titles = [f"Sea {number}" for number in range(30)] + [f"Alps {number}" for number in range(30, 60)]
    text, generator = SharedText(titles, [[]] * 60), torch.Generator().manual_seed(0)
    found = Counter(text.walk(3, 1, generator)[0] for _ in range(3000))
    assert set(found) - {3} == set(range(30)) - {3} and found[3] < 3
    assert all(50 < found[item] < 160 for item in range(30) if item != 3)  # about 103 of 3,000, give or take 10


def test_after_pretraining_the_llm_reads_the_history_of_prompts_it_has_not_seen(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(11)
    own, other = (
        mean_loss(model, documents, tokenizer.pad_token_id, 512)
        for documents in reading_prompts(TITLES, ATTRIBUTES, compose(tokenizer), HISTORY, 200, draw)
    )
    tokens = np.mean([len(compose(tokenizer)([1], item)[1]) for item in range(1, len(TITLES))])
    without_reading = np.log(len(TITLES) - 1) / tokens  # all that titles tell when every answer is as likely
    assert own < 0.97 * without_reading and own < 0.92 * other


def test_the_log_tells_how_much_the_llm_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build(tmp_path, short())
    (line,) = [message for message in caplog.messages if "after its own history" in message]
    own, other = map(float, re.findall(r"\d+\.\d+", line))
    assert own == pytest.approx(other, rel=0.1), "three steps teach nothing"


def test_without_attributes_and_with_one_item(tmp_path: Path) -> None:
    build(tmp_path, short(), attributes=[[] for _ in TITLES], titles=["", "Only One", *TITLES[2:]])
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message", "key", "kind"),
    [
        ({"titles": []}, "titles", "", "value"),
        ({"titles": ["", "  "], "attributes": [[], []]}, "all are empty", "title_field", "data"),
        ({"attributes": []}, "attributes of 0 items", "", "value"),
        (
            {"config": TinyLLMConfig(context_length=64, vocab_size=512), "history_length": 40},
            "tiny_context_length",
            "tiny_context_length",
            "conflict",
        ),
    ],
)
def test_bad_input_is_named(tmp_path: Path, changes: dict, message: str, key, kind) -> None:
    with refused(key, kind, message):
        build(tmp_path, **{"config": short(), **changes})


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("steps", 0, "tiny_steps"),
        ("steps", "12", "tiny_steps"),
        ("steps", True, "tiny_steps"),
        ("hidden_size", 50.0, "tiny_hidden_size"),
        ("learning_rate", float("nan"), "tiny_learning_rate"),
        ("seed", -1, "tiny_seed"),
    ],
)
def test_a_bad_setting_names_its_key(field: str, value: object, key) -> None:
    with refused(key, "value", f"tiny_{field}"):
        TinyLLMConfig(**{field: value})


def test_settings_are_read_by_their_keys() -> None:
    assert TinyLLMConfig.from_settings({"tiny_steps": 5, "tiny_seed": None, "steps": 9}) == TinyLLMConfig(steps=5)
    with refused("tiny_hidden_size", "conflict", "twice tiny_n_heads"):
        TinyLLMConfig.from_settings({"tiny_hidden_size": 100, "tiny_n_heads": 3})
