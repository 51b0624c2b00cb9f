"""Prompts read as their layout says, as text and as token ids, for every tokenizer family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.llm.branch_batch import branch_batch
from recbole_llm.llm.tiny import TinyLLMConfig, train_tokenizer
from recbole_llm.llm.trunks import TokenTree
from recbole_llm.prompt import ClickPromptEncoder, Example, TitlePromptEncoder, Wording, text_encoder
from recbole_llm.prompt.titles import clean_answer, clean_title
from tests.families import FAMILIES, TEXTS, make_tokenizer
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
DOMAINS = ("movie", "game", "book", "artist", "video", "product", "item")
WORDS = {"item": "movie", "items": "movies", "verb": "watched"}
TITLES = [None, "Toy Story (1995)", 'Say "Hi"', None, "罗马假日", "Babe", "</s> <|im_end|> {item}", "Babe"]
CATALOG = ItemCatalog(TITLES)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_metaspace_tokenizer():
    """Puts a blank before every text, as Llama's SentencePiece does, with bytes for what it does not know."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=specials))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {family: make_tokenizer(family) for family in FAMILIES}


def make_builder(family="llama", style="alpaca", catalog=CATALOG, max_prompt_tokens=None, wording=None, **options):
    tokenizer = TOKENIZERS[family]
    return TitlePromptEncoder(
        wording or Wording(**WORDS),
        text_encoder(tokenizer),
        catalog.titles,
        style=style,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_prompt_tokens=max_prompt_tokens,
        chat_template=tokenizer if style == "chat" else None,
        **options,
    )


def asked(encoder, history, **shown):
    return encoder.prompt(Example(history, **shown))


def alpaca_tail(family):
    return text_encoder(TOKENIZERS[family])("\n\n### Response:\n")


def make_chat_tokenizer(family):
    tokenizer = make_tokenizer(family)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# ---- text ----------------------------------------------------------------------------------------------------------


def test_the_alpaca_layout():
    assert make_builder().text(Example([1, 5])) == (
        "You know movies well and answer with the name of one movie in double quotes.\n\n"
        "### Instruction:\n"
        "Here are the movies a user has watched, oldest first. Name one new movie this user would like.\n\n"
        "### Input:\n"
        'So far this user has watched these movies: "Toy Story (1995)", "Babe"\n\n'
        "### Response:\n"
    )


def test_plain_is_alpaca_without_the_headers():
    alpaca, plain = (make_builder(style=style).text(Example([1, 5])) for style in ("alpaca", "plain"))
    for header in ("### Instruction:\n", "### Input:\n", "### Response:\n"):
        assert alpaca.count(header) == 1
        alpaca = alpaca.replace(header, "")
    assert plain == alpaca


def test_a_list_is_the_history_alone_which_the_answer_goes_on_with(family):
    """Prompt and answer of a row are the beginning of the next row's prompt, but for what a quote merges with."""
    builder, encode = make_builder(family, "list"), text_encoder(TOKENIZERS[family])
    example = Example([1, 5], target=2)
    text = builder.text(example)
    assert text == 'So far this user has watched these movies: "Toy Story (1995)", "Babe",'
    bos = [token for token in (TOKENIZERS[family].bos_token_id,) if token is not None]
    prompt, (*answer, end) = builder.prompt(example), builder.response(example)
    assert prompt + answer == bos + encode(text + f' "{TITLES[2]}"') and end == TOKENIZERS[family].eos_token_id
    grown, shared = builder.prompt(Example([1, 5, 2])), len(prompt + answer) - 1
    assert grown == bos + encode(text + f' "{TITLES[2]}",') and grown[:shared] == (prompt + answer)[:shared]
    assert clean_answer(TOKENIZERS[family].decode(answer)) == TITLES[2]
    assert builder.response_from_text(f' "{TITLES[2]}"') == [*answer, end]


@pytest.mark.parametrize("style", ["list", "lines"])
def test_rows_of_a_user_as_lists_are_one_chain_for_the_tiny_llms_tokenizer(style):
    titles = ["Toy Story (1995)", "Babe", "Heat"]
    tokenizer = train_tokenizer(titles, [], TinyLLMConfig(vocab_size=600))
    builder = TitlePromptEncoder(
        Wording(**WORDS), text_encoder(tokenizer), [None, *titles], eos_token_id=2, bos_token_id=1, style=style
    )
    rows = [Example([1], 2), Example([1, 2], 3), Example([1, 2, 3], 1)]
    tree = TokenTree.of([builder.prompt(row) for row in rows], [[builder.response(row)] for row in rows])
    last = [*builder.prompt(rows[-1]), *builder.response(rows[-1])]
    assert tree.is_chain and tree.tokens == last[:-1]


@pytest.mark.parametrize("style", ["list", "lines"])
@pytest.mark.parametrize("shown", [{"candidates": True}, {"wording": Wording(**WORDS, input="{history}: {verb}")}])
def test_a_list_that_does_not_end_with_the_history_is_refused(shown, style):
    with refused("prompt_style", "conflict", f"{style} needs the history at the end of the prompt"):
        make_builder(style=style, **shown)


@pytest.mark.parametrize("style", ["list", "lines"])
def test_a_list_without_a_history_is_refused(style):
    with refused("prompt_style", "conflict", f"{style} needs a history in the prompt, and this one shows none"):
        Wording(**WORDS).without_history(style)


def test_lines_are_bare_titles_which_the_answer_goes_on_with(family):
    """A title costs its own tokens and one more; what it spells, outer quotes too, is what the answer names."""
    builder, encode = make_builder(family, "lines"), text_encoder(TOKENIZERS[family])
    text = builder.text(Example([1, 5]))
    assert text == "So far this user has watched these movies:\nToy Story (1995)\nBabe\n"
    bos = [token for token in (TOKENIZERS[family].bos_token_id,) if token is not None]
    prompt, (*answer, end) = builder.prompt(Example([1, 5], target=2)), builder.response(Example([1, 5], target=2))
    assert prompt == bos + encode(text) and end == TOKENIZERS[family].eos_token_id
    assert TOKENIZERS[family].decode(answer) == TITLES[2]
    assert builder.prompt(Example([1, 5, 2]))[: len(prompt + answer)] == prompt + answer
    assert len(builder.prompt(Example([1, 5, 2]))) == len(prompt + answer) + len(encode("\n"))
    for shown in (TITLES[2], '"Heroes"', '"'):
        assert builder.layout.title_of(builder.layout.show(shown)) == shown
    assert builder.layout.title_of(f" {TITLES[2]} \nBabe\n") == TITLES[2]


def test_docs_show_the_layout_as_built():
    assert make_builder().text(Example([1, 5])) in (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_files_read_and_use_their_words(domain):
    wording = Wording.load(ROOT / "properties" / "prompt" / f"{domain}.yaml")
    head = wording.next_item().texts[0]
    for word in (wording.item, wording.items, wording.verb):
        assert word in head
    assert "{" not in head


def test_no_domain_file_is_untested():
    assert {path.stem for path in (ROOT / "properties" / "prompt").glob("*.yaml")} == set(DOMAINS)


def test_a_domain_can_replace_sentences():
    wording = {**WORDS, "preamble": "", "instruction": "Next {item}?", "input": "{history} {{{items}}}"}
    layout = Wording.load(wording).next_item()
    assert (
        layout.fill({"history": ["A"]})
        == '### Instruction:\nNext movie?\n\n### Input:\n"A" {movies}\n\n### Response:\n'
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"itmes": "x"}, "unknown", "unknown key 'itmes'; keys: item, items, verb, preamble, instruction, input"),
        ({"item": None}, "value", "item must be text, not None"),
        ({"verb": 5}, "value", "verb must be text, not 5"),
        ({"input": "no slot"}, "value", "input must hold the slot {history} exactly once"),
        ({"input": "{history} {history}"}, "value", "input must hold the slot {history} exactly once"),
        ({"preamble": "{history}"}, "unknown", "preamble has an unknown slot {history}"),
        ({"instruction": "{film}"}, "unknown", "instruction has an unknown slot {film}; slots: item, items, verb"),
        ({"instruction": "a { b"}, "value", "instruction has a stray brace"),
    ],
)
def test_mistakes_in_the_wording_are_one_line_errors_that_name_file_and_key(tmp_path, change, kind, message):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({**WORDS, **change}))
    for source, where in ((path, f"prompt template {path}"), ({**WORDS, **change}, "prompt template")):
        with refused(next(iter(change)), kind, "^" + re.escape(f"{where}: {message}")):
            Wording.load(source)


def test_missing_keys_and_unreadable_files_are_named(tmp_path):
    with refused("verb", "missing", "key 'verb' is missing; it needs item, items, verb"):
        Wording.load({"item": "movie", "items": "movies"})
    with refused("", "file", "cannot read the prompt template .*absent.yaml: No such file"):
        Wording.load(tmp_path / "absent.yaml")
    twice = yaml.safe_dump(WORDS) + yaml.safe_dump(WORDS)
    for text in ("- a list", "item: [", "item: a: b", twice, "item: " + "[" * 10_000):
        (tmp_path / "bad.yaml").write_text(text)
        with refused("", "file", r"prompt template .*bad.yaml (must hold|is not valid YAML|nests its values too deep)"):
            Wording.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("")
    with refused("item", "missing", "prompt template .*bad.yaml: key 'item' is missing"):
        Wording.load(tmp_path / "bad.yaml")


def test_an_unknown_style_lists_the_styles():
    with refused("prompt_style", "unknown", "no style 'alpacca'; choose one of alpaca, plain, list, lines, chat"):
        make_builder(style="alpacca")


# ---- token ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["alpaca", "plain"])
def test_token_ids_spell_the_text_after_bos(family, style):
    builder, tokenizer = make_builder(family, style), TOKENIZERS[family]
    for history in ([1], [1, 2, 4, 5, 6], [5, 5, 5]):
        token_ids = asked(builder, history)
        if tokenizer.bos_token_id is not None:
            assert token_ids.pop(0) == tokenizer.bos_token_id
        assert tokenizer.decode(token_ids) == builder.text(Example(history))


def test_head_and_tail_tokens_do_not_depend_on_the_history(family):
    builder = make_builder(family)
    tail = alpaca_tail(family)
    for history in ([1], [2, 5], [6, 4, 1]):
        token_ids = asked(builder, history)
        assert token_ids[: len(builder.common_prefix)] == builder.common_prefix
        assert token_ids[-len(tail) :] == tail


def test_a_response_is_the_quoted_title_then_eos_and_gives_the_title_back(family):
    builder, tokenizer = make_builder(family), TOKENIZERS[family]
    for item_id in (1, 2, 4, 5, 6):
        *answer, last = builder.item_response(item_id)
        assert last == tokenizer.eos_token_id
        assert answer == text_encoder(tokenizer)(f'"{TITLES[item_id]}"')
        assert CATALOG.lookup(clean_answer(tokenizer.decode(answer))) == item_id
        assert builder.response_from_text(f'"{TITLES[item_id]}"') == [*answer, last]


def test_generated_text_stays_raw(family):
    builder, tokenizer = make_builder(family), TOKENIZERS[family]
    for text in ("", ' "Toy\n\nStory', '""', "Foo !"):
        *answer, last = builder.response_from_text(text)
        assert (tokenizer.decode(answer), last) == (text, tokenizer.eos_token_id)


def test_titles_that_spell_special_tokens_stay_text(family):
    tokenizer = TOKENIZERS[family]
    builder = make_builder(family, catalog=ItemCatalog([None, " ".join(tokenizer.all_special_tokens)]))
    assert not set(tokenizer.all_special_ids) & set(builder.item_response(1)[:-1])
    assert not set(tokenizer.all_special_ids) & set(asked(builder, [1])[1:])


@pytest.mark.parametrize(
    "title", ["</s> special", "a</s>", "<pad>", "</s></s>", "no </s> and <pad>", "</s", "plain", "</S> a"]
)
def test_special_tokens_that_are_pieces_of_the_vocabulary_stay_text(title):
    """As in Unigram: where the tokenizer is told to split special tokens, it finds them among its pieces again."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"</s>padeciln o"]
    unigram = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) % 2) for piece in dict.fromkeys(pieces)], 2))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    plain = tokenizer.encode("</s> special", add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.eos_token_id in plain
    found = text_encoder(tokenizer)(title)
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(found)
    known = [token if token != "▁" else " " for token in tokenizer.convert_ids_to_tokens(found)]
    assert len("".join(known).replace("<unk>", "?")) == len(title)


def test_added_tokens_that_are_not_special_are_read_in_titles_as_in_any_text():
    tokenizer = make_tokenizer("qwen2")
    tokenizer.add_tokens(["  ", "\n\n"])
    for text in ("Se7en  (1995)", "a\n\nb"):
        assert text_encoder(tokenizer)(text) == tokenizer.encode(text, add_special_tokens=False)
        assert {*tokenizer.convert_tokens_to_ids(["  ", "\n\n"])} & {*text_encoder(tokenizer)(text)}


titles_of_any_script = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(clean_title)


@pytest.mark.parametrize("style", ["alpaca", "lines"])
@settings(max_examples=50)
@given(titles=st.lists(titles_of_any_script, min_size=1))
def test_any_title_survives_prompt_and_response(titles, style):
    builder = make_builder("qwen2", style, catalog=ItemCatalog([None, *titles]))
    decode = TOKENIZERS["qwen2"].decode
    history = range(1, len(titles) + 1)
    assert decode(asked(builder, history)) == builder.text(Example(history))
    for item_id in history:
        answer = decode(builder.item_response(item_id)[:-1])
        assert builder.layout.title_of(answer) == clean_title(titles[item_id - 1])


def test_a_tokenizer_that_opens_every_text_with_a_blank_gives_no_extra_blanks():
    tokenizer = make_metaspace_tokenizer()
    assert tokenizer.convert_ids_to_tokens(text_encoder(tokenizer)('"Babe"'))[0].startswith("▁")
    titles = [None, "Toy Story", "Babe", "Heat"]
    encoder = TitlePromptEncoder(Wording(**WORDS), text_encoder(tokenizer), titles, eos_token_id=2, bos_token_id=1)
    example = Example([1, 2, 3], target=2)
    assert tokenizer.decode(encoder.prompt(example)[1:]) == encoder.text(example)
    assert not tokenizer.convert_ids_to_tokens(encoder.response(example))[0].startswith("▁")


def test_a_tokenizer_that_merges_line_breaks_loses_none():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(['x\n\n\n### Response:\n"x'] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    encode = text_encoder(tokenizer)
    assert encode("\n\n\n###")[0] != encode("\n")[0], "a line break merges with those that follow"
    encoder = TitlePromptEncoder(Wording(**WORDS), encode, [None, "Toy Story", "Babe"], eos_token_id=0)
    assert tokenizer.decode(asked(encoder, [1, 2])) == encoder.text(Example([1, 2]))


def test_training_rows_start_with_the_prompt_that_generation_is_given(family):
    builder, trainer_builder = make_builder(family), make_builder(family)
    histories, targets = [[1], [1, 5, 2], [4, 6]], [5, 6, 1]
    prompts = [asked(trainer_builder, history) for history in histories]
    answers = [[trainer_builder.item_response(target)] for target in targets]
    batch = branch_batch(prompts, answers, pad_token_id=0)
    for row, history in enumerate(histories):
        real = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert real == asked(builder, history) + answers[row][0][:-1]  # nothing follows EOS: it is no input


def test_prompts_do_not_depend_on_the_size_of_the_catalogue(family):
    larger = ItemCatalog([*TITLES, *(f"Film {number}" for number in range(500))])
    small, large = make_builder(family), make_builder(family, catalog=larger)
    assert asked(small, [1, 2, 6]) == asked(large, [1, 2, 6])
    assert small.item_response(2) == large.item_response(2)


def test_padding_and_untitled_items_are_skipped_and_repeats_kept():
    builder = make_builder()
    assert asked(builder, [0, 0, 1, 3, 5, 0]) == asked(builder, [1, 5])
    assert asked(builder, [5, 7]) == asked(builder, [5, 5]) != asked(builder, [5])
    for history in ([], [0, 0], [3, 0]):
        with pytest.raises(ValueError, match="at least one title"):
            asked(builder, history)
    with pytest.raises(ValueError, match="item '3' has no title"):
        builder.item_response(3)


def test_every_title_is_tokenised_once_in_the_middle_and_once_at_the_end():
    calls = []
    encode = text_encoder(TOKENIZERS["gpt2"])
    builder = TitlePromptEncoder(
        Wording(**WORDS), lambda text: calls.append(text) or encode(text), TITLES, eos_token_id=0
    )
    asked(builder, [1, 5, 2]), asked(builder, [2, 5]), builder.item_response(2)
    n_calls = len(calls)
    asked(builder, [5, 1, 2]), asked(builder, [1, 5]), builder.item_response(2)
    assert len(calls) == n_calls


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surplus", range(0, 60, 3))
def test_the_oldest_titles_go_first_then_the_last_one_is_cut(family, surplus):
    full = make_builder(family)
    tail = alpaca_tail(family)
    least = len(full.common_prefix) + len(tail) + 1
    builder = make_builder(family, max_prompt_tokens=least + surplus)
    history = [6, 1, 2, 4, 5]
    token_ids = asked(builder, history)
    assert len(token_ids) <= least + surplus
    fitting = [start for start in range(5) if len(asked(full, history[start:])) <= least + surplus]
    if fitting:
        assert token_ids == asked(full, history[fitting[0] :])
    else:
        last = asked(full, [5])
        n_head = len(full.common_prefix)
        assert token_ids == last[: n_head + surplus + 1] + tail
    assert (builder.n_prompts, builder.n_shortened) == (1, int(fitting[:1] != [0]))


def test_a_limit_below_the_template_names_the_least_that_works(family):
    with refused("max_prompt_tokens", "value", r"max_prompt_tokens: 5 is too short .* at least \d+") as caught:
        make_builder(family, max_prompt_tokens=5)
    least = int(str(caught.value).split("at least ")[1].split(";")[0])
    first_token = asked(make_builder(family), [2])[len(make_builder(family).common_prefix)]
    shortest = make_builder(family, max_prompt_tokens=least)
    assert asked(shortest, [1, 2]) == [*shortest.common_prefix, first_token, *alpaca_tail(family)]
    assert len(asked(shortest, [1, 2])) == least
    with refused("max_prompt_tokens", "value"):
        make_builder(family, max_prompt_tokens=least - 1)


def test_the_fingerprint_follows_wording_style_and_limit():
    prints = [
        make_builder().fingerprint(),
        make_builder(style="plain").fingerprint(),
        make_builder(max_prompt_tokens=200).fingerprint(),
        make_builder(wording=Wording(**{**WORDS, "verb": "seen"})).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == make_builder("gpt2", catalog=ItemCatalog([None, "Other"])).fingerprint()


# ---- chat ----------------------------------------------------------------------------------------------------------


def test_chat_wraps_the_plain_blocks_in_the_tokenizers_own_template(family):
    tokenizer = make_chat_tokenizer(family)
    builder = TitlePromptEncoder(
        Wording(**WORDS),
        text_encoder(tokenizer),
        TITLES,
        style="chat",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        chat_template=tokenizer,
    )
    history = [1, 2, 5]
    content = make_builder(family, "plain").text(Example(history)).rstrip("\n")
    turns = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert builder.text(Example(history)) == rendered
    token_ids = asked(builder, history)
    assert tokenizer.decode(token_ids) == rendered
    n_bos = 0 if tokenizer.bos_token is None else 1
    assert token_ids[: n_bos + 1].count(tokenizer.bos_token_id) == n_bos
    assert builder.item_response(1) == make_builder(family).item_response(1)


def test_chat_without_a_usable_template_names_the_setting():
    with refused("prompt_style", "conflict", "prompt_style: the tokenizer of llm_path has no chat template"):
        make_builder(style="chat")
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = "nothing of the turn"
    with refused("prompt_style", "conflict", "prompt_style: the chat template of llm_path does not print"):
        Wording(**WORDS).next_item("chat", tokenizer)


# ---- title strings -------------------------------------------------------------------------------------------------


def test_titles_are_cleaned_by_the_catalogue_and_then_taken_as_they_are(family):
    catalog = ItemCatalog([None, "Toy Story (1995)", " Babe\n", '\t Say "Hi"'])
    builder, example = make_builder(family, catalog=catalog), Example([1, 2], target=3)
    assert builder.prompt(example) == make_builder(family).prompt(Example([1, 5]))
    assert builder.response(example) == make_builder(family).response(Example([], target=2))
    raw = TitlePromptEncoder(Wording(**WORDS), text_encoder(TOKENIZERS[family]), [None, " Babe\n"], eos_token_id=0)
    assert 'movies: " Babe\n"' in raw.text(Example([1]))


# ---- slots ---------------------------------------------------------------------------------------------------------


def make_slotted(family, max_prompt_tokens=None, catalog=CATALOG, item_slots=True):
    tokenizer = TOKENIZERS[family]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    options = {"max_prompt_tokens": max_prompt_tokens, "item_slots": item_slots}
    return TitlePromptEncoder(Wording(**WORDS), text_encoder(tokenizer), catalog.titles, **ids, **options)


def test_every_titled_item_has_its_slot_behind_its_title_and_the_rest_reads_as_the_plain_prompt(family):
    builder, plain, tokenizer = make_slotted(family), make_builder(family), TOKENIZERS[family]
    history = [1, 0, 5, 3, 2, 5, 7, 4]  # padding, an untitled item, a repeated item and two items of one title
    prompt = asked(builder, history)
    assert [-token for token in prompt if token < 0] == [1, 5, 2, 5, 7, 4]
    assert tokenizer.decode([token for token in prompt if token >= 0]) == tokenizer.decode(asked(plain, history))
    for place, token in enumerate(prompt):
        if token < 0:
            before = tokenizer.decode([t for t in prompt[:place] if t >= 0])
            assert before.endswith(f'"{clean_title(TITLES[-token])}"')


@pytest.mark.parametrize("title", ["-1", "[-2]", "<unk> <slot> 3", "<|im_end|></s>"])
def test_a_title_that_looks_like_a_slot_is_text(family, title):
    builder = make_slotted(family, catalog=ItemCatalog([None, title, "Babe"]))
    prompt = asked(builder, [2, 1, 2])
    assert [token for token in prompt if token < 0] == [-2, -1, -2]
    assert builder.item_response(1)[-1] == TOKENIZERS[family].eos_token_id and min(builder.item_response(1)) >= 0


@pytest.mark.parametrize("surplus", range(60))
def test_shortened_prompts_keep_each_slot_with_its_title(surplus):
    history = [1, 5, 2, 6, 4]
    whole = make_slotted("llama")
    least = len(whole.common_prefix) + len(alpaca_tail("llama")) + 1
    builder = make_slotted("llama", least + surplus)
    prompt = asked(builder, history)
    kept = [-token for token in prompt if token < 0]
    assert kept == history[-len(kept) :] and kept and len(prompt) <= least + surplus
    if len(kept) > 1 or prompt == asked(whole, kept):
        assert prompt == asked(whole, kept)
        assert len(kept) == len(history) or len(asked(whole, history[-len(kept) - 1 :])) > least + surplus
    else:  # one title that was cut: its slot stays, right before the tail
        assert prompt[-len(alpaca_tail("llama")) - 1] == -history[-1] and len(prompt) == least + surplus


def test_prompts_with_slots_have_another_fingerprint():
    assert make_slotted("llama").fingerprint() != make_builder("llama").fingerprint()
    assert make_slotted("llama", item_slots=False).fingerprint() == make_builder("llama").fingerprint()


# ---- every kind of prompt ------------------------------------------------------------------------------------------


def pieces_of(encoder, shown, tokenizer):
    """The prompt of items by slot, put together from the layout's texts piece by piece; all slots follow a blank."""
    encode, (first, *others) = text_encoder(tokenizer), encoder.layout.texts
    token_ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    token_ids += encode(first.removesuffix(" "))
    for slot, text in zip(encoder.layout.slots, others, strict=True):
        for number, item in enumerate(shown[slot]):
            token_ids += encode(",") if number else []
            token_ids += encode(f' "{TITLES[item]}"') + ([-item] if encoder.item_slots else [])
        token_ids += encode(text.removesuffix(" "))
    return token_ids


@pytest.mark.parametrize("style", ["alpaca", "plain"])
@pytest.mark.parametrize("item_slots", [False, True])
@pytest.mark.parametrize("candidates", [[], [5, 6, 1]])
def test_a_prompt_is_the_tokens_of_its_text_and_with_slots_its_pieces(family, style, item_slots, candidates):
    builder, tokenizer = (
        make_builder(family, style, candidates=bool(candidates), item_slots=item_slots),
        TOKENIZERS[family],
    )
    for history in ([1], [2, 4, 4, 6, 5, 1], [5, 2]):
        example = Example(history, candidates=candidates)
        expected = pieces_of(builder, {"history": history, "candidates": candidates}, tokenizer)
        assert builder.prompt(example) == (expected if item_slots else whole_text(builder, example, tokenizer))


def whole_text(encoder, example, tokenizer, encode=None):
    """The tokens of the prompt's text as a whole, BOS before it."""
    start = [] if tokenizer.bos_token_id is None or encode else [tokenizer.bos_token_id]
    return start + (encode or text_encoder(tokenizer))(encoder.text(example))


def splitting_tokenizer(name):
    """Byte-level BPE that splits text as Llama 3, Qwen or SmolLM do, with merges across quotes and line breaks."""
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + letters.replace("DIGITS", "{1,3}" if name == "llama3" else "")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "smollm")
    split = pre_tokenizers.Digits(individual_digits=True) if name == "smollm" else None
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([split or pre_tokenizers.Split(Regex(pattern), "isolated"), whole])
    raw.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
    texts = [f'{text} (1995)", "{text}!", "{text}"\n\n{text}"?\n\n### {text}:\n{text}"<' for text in TEXTS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet)
    )
    own = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=["<|im_start|>"], **own)


SPLITTING = {name: splitting_tokenizer(name) for name in ("llama3", "qwen", "smollm")}
titles_of_any_kind = st.lists(st.text(min_size=1).map(clean_title).filter(bool), min_size=2, max_size=4)


@pytest.mark.parametrize("name", SPLITTING)
def test_quotes_commas_and_line_breaks_merge_where_the_tokenizer_merges_them(name):
    tokenizer = SPLITTING[name]
    words = [tokenizer.decode([token]) for token in tokenizer.get_vocab().values()]
    assert '",' in words and ')",' in words
    assert ('"\n\n' in words) == (name != "smollm")


@pytest.mark.parametrize("style", ["alpaca", "plain", "list", "lines", "chat"])
@pytest.mark.parametrize("name", SPLITTING)
@given(titles=titles_of_any_kind, listed=st.booleans())
@settings(max_examples=25)
def test_a_prompt_is_the_tokens_of_its_text_whatever_the_titles(name, style, titles, listed):
    tokenizer, listed = SPLITTING[name], listed and style not in ("list", "lines")
    texts = [None, *(title for title in titles if not any(token in title for token in tokenizer.all_special_tokens))]
    encoder = TitlePromptEncoder(
        Wording(**WORDS),
        text_encoder(tokenizer),
        texts,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        style=style,
        chat_template=tokenizer if style == "chat" else None,
        candidates=listed,
    )
    if len(texts) < 2:
        return
    items = list(range(1, len(texts)))
    example = Example(items + items[:1], candidates=items if listed else [])
    encode = (lambda text: tokenizer.encode(text, add_special_tokens=False)) if style == "chat" else None
    assert encoder.prompt(example) == whole_text(encoder, example, tokenizer, encode)


def test_a_response_and_a_prompt_are_asked_for_alike_whatever_the_kind():
    """One caller for both kinds: what it needs to know, the encoder tells it."""
    answers = train_tokenizer([title for title in TITLES if title], [], TinyLLMConfig(vocab_size=512))
    kinds = (TitlePromptEncoder, ClickPromptEncoder)
    encoders = [kind(Wording(**WORDS), text_encoder(answers), TITLES, eos_token_id=2, bos_token_id=1) for kind in kinds]
    rows = [
        Example([1, 3, 5], 2, likes=[True, False, False], liked=False),
        Example([0, 3], 2, likes=[False, True], liked=True),
        Example([1, 5], 3, likes=[True, True], liked=True),
        Example([1, 5], 2, likes=[True, True]),
    ]
    there = [[(one.has_prompt(row), one.has_response(row)) for row in rows] for one in encoders]
    assert there[0] == [(True, True), (False, True), (True, False), (True, True)]
    assert there[1] == [(True, True), (True, True), (False, True), (True, False)]
    for encoder, own in zip(encoders, there, strict=True):
        for row, (has_prompt, has_response) in zip(rows, own, strict=True):
            for is_there, encode in ((has_prompt, encoder.prompt), (has_response, encoder.response)):
                if is_there:
                    assert encode(row)
                else:
                    with pytest.raises(ValueError):
                        encode(row)
        assert encoder.prompt(rows[0])[: len(encoder.common_prefix)] == encoder.common_prefix
        assert encoder.response(rows[0])[-1] == 2


def test_no_prompt_knows_its_answer():
    answers = train_tokenizer([title for title in TITLES if title], [], TinyLLMConfig(vocab_size=512))
    likes = [True, False]
    click = ClickPromptEncoder(Wording(**WORDS), text_encoder(answers), TITLES, eos_token_id=2)
    assert click.prompt(Example([1, 5], 2, likes, liked=True)) == click.prompt(Example([1, 5], 2, likes, liked=False))
    builder = make_builder()
    assert builder.prompt(Example([1, 5], 2)) == builder.prompt(Example([1, 5], 6)) == builder.prompt(Example([1, 5]))


def test_a_question_of_yes_or_no_lists_no_candidates_and_needs_all_likes():
    answers = train_tokenizer([title for title in TITLES if title], [], TinyLLMConfig(vocab_size=512))
    with pytest.raises(ValueError, match="lists no candidates"):
        ClickPromptEncoder(Wording(**WORDS), text_encoder(answers), TITLES, eos_token_id=2, candidates=True)
    click = ClickPromptEncoder(Wording(**WORDS), text_encoder(answers), TITLES, eos_token_id=2)
    for likes in (None, [True], [True, False, True]):
        with pytest.raises(ValueError, match="which items of its history the user liked"):
            click.prompt(Example([1, 5], 2, likes))
