"""Settings: every key with values of every type, files of any bytes, words of any text; resolved without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.property_files import dump_yaml, load_yaml
from recbole_llm.settings.check import check_resolved
from recbole_llm.settings.command import parse_argv, parse_command
from recbole_llm.settings.declarations import llm_keys, model_keys
from recbole_llm.settings.defaults import COMMAND_KEYS, GIVEN, known_keys
from recbole_llm.settings.resolve import Resolution, resolve
from recbole_llm.settings.values import parse_setting, parse_value, write_setting
from tests.hostile.cases import FOREIGN, ODD_TEXTS, SPECIAL_TOKENS, alike, broken, outcome, texts, tried, values

pytestmark = pytest.mark.hostile
MODELS = (
    "BIGRec",
    "SOFT",
    "iLoRA",
    "SemID",
    "TALLRec",
    "LLMEmb",
    "Laser",
    "LMDH",
    "SAR",
    "Pop",
    "SASRec",
    "S3Rec",
    "BPR",
    "FM",
)
# What a run makes of these depends on other settings, or on more than one source.
MERGED = {"eval_args", "load_col", "train_neg_sample_args", "valid_metric", "metrics", "threshold", "data_path", GIVEN}
# What ~ leaves to the run, which names what it chose.
CHOSEN = {"llm_recommender", "train_unit"}
# Keys that hold keys: names that are known inside them, so that not every case ends at the first unknown one.
NESTED = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "load_col": ("inter", "item", "user"),
    "unload_col": ("inter", "item"),
    "val_interval": ("rating", "user_id", "title"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
    "clip_grad_norm": ("max_norm", "norm_type"),
    "threshold": ("rating",),
    "recommender_config": ("hidden_size", "learning_rate", "loss_type", "topk"),
    "seq_len": ("title",),
}
OF_EVERY_TYPE: tuple[Any, ...] = (
    *(None, True, 0, 7, -1.5, "", "x", [], ["x"], [1], [[1]]),
    *({}, {"x": 1}, {"x": ["y"]}, {"x": {"y": None}}, {"inter": 3}),
)
# Keys without a declaration that are read under one value of another key: the model and that value.
CONDITIONAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mask_ratio": ("SASRec", {"transform": "mask_itemseq"}),
    "eta": ("SASRec", {"transform": "crop_itemseq"}),
    "beta": ("SASRec", {"transform": "reorder_itemseq"}),
    "pre_model_path": ("S3Rec", {"train_stage": "finetune"}),
}
inside = st.recursive(
    values,
    lambda inner: st.dictionaries(
        st.sampled_from(["LS", "RS", "TS", "valid", "test", "inter"]) | texts, inner, max_size=2
    ),
    max_leaves=4,
) | st.sampled_from(["full", "uni10", "pop0", "uni" + "9" * 30, "labeled", "TO", "RO", "user", "*", "[3,inf)", "[.,-)"])


@cache
def keys(model: str) -> list[str]:
    return sorted(set(known_keys(model, "ml-100k")) - set(COMMAND_KEYS) - {GIVEN})


def resolved(model: str, settings: dict[str, Any]) -> Resolution:
    found = resolve(model, "ml-100k", settings)
    check_resolved([found])
    return found


@tried(900)
@given(st.data(), st.sampled_from(MODELS))
def test_any_value_of_any_key_is_taken_as_it_is_or_refused(data: st.DataObject, model: str) -> None:
    _check_taken(model, data.draw(st.sampled_from(keys(model))), data.draw(values))


@pytest.mark.parametrize("model", ["BIGRec", "S3Rec", "FM"])
def test_a_value_of_every_type_of_every_key_is_taken_or_refused(model: str) -> None:
    for key in keys(model):
        for value in OF_EVERY_TYPE:
            _check_taken(model, key, value)


def _check_taken(model: str, key: str, value: Any) -> None:
    """Whether a value that is not refused is the run's."""
    found, _ = outcome(resolved, model, {key: value})
    if found is not None and key not in MERGED and not (value is None and key in CHOSEN):
        assert alike(found[key], value), (key, value, found[key])


@tried(400)
@given(values, st.sampled_from(sorted(CONDITIONAL)))
def test_any_value_of_a_key_that_another_value_calls_for_is_taken_or_refused(value: Any, key: str) -> None:
    model, others = CONDITIONAL[key]
    found, _ = outcome(resolved, model, {**others, key: value})
    if found is not None:
        assert alike(found[key], value), (value, found[key])


@tried(500)
@given(st.data(), st.sampled_from(sorted(NESTED)), st.sampled_from(["BIGRec", "TALLRec", "SASRec", "BPR"]))
def test_any_value_inside_a_mapping_is_taken_or_refused(data: st.DataObject, key: str, model: str) -> None:
    value = data.draw(st.dictionaries(st.sampled_from(NESTED[key]) | texts, inside, max_size=3))
    outcome(resolved, model, {key: value})


def test_no_declared_key_takes_what_no_setting_can_be() -> None:
    for key in [*llm_keys().values(), *model_keys().values()]:
        for value in FOREIGN:
            found, error = outcome(key.check, value)
            assert error is not None and error.key == key.name and error.kind == "value", (key.name, value)


def test_no_declared_number_takes_one_that_no_array_holds() -> None:
    for key in [*llm_keys().values(), *model_keys().values()]:
        for value in (2**63, -(2**63), 10**400, float("nan"), float("inf"), -float("inf"), [2**63], [float("nan")]):
            found, error = outcome(key.check, value)
            assert error is not None and error.key == key.name, (key.name, value)


@tried(300)
@given(st.sampled_from(MODELS), st.text(min_size=1, max_size=20) | texts, values)
def test_a_key_that_nothing_knows_is_refused(model: str, key: str, value: Any) -> None:
    if key in keys(model) or key in COMMAND_KEYS or key == GIVEN:
        return
    found, error = outcome(resolved, model, {key: value})
    assert error is not None and error.kind in ("unknown", "conflict")


@tried(200)
@given(values, values)
def test_a_model_and_a_data_set_of_any_name_are_found_or_refused(model: Any, dataset: Any) -> None:
    found, error = outcome(resolve, model, dataset, {})
    assert error is not None, found


@tried(200)
@given(values, st.sampled_from(["Pop", "BIGRec"]))
def test_the_names_of_given_settings_are_names(value: Any, model: str) -> None:
    """Of a config.yaml that somebody changed."""
    found, error = outcome(resolved, model, {GIVEN: value, "topk": 3})
    assert (error is None) == (isinstance(value, list) and all(isinstance(name, str) for name in value))
    if error is not None:
        assert (error.key, error.kind) == (GIVEN, "file")


# ----------------------------------------------------------------------------------------------------- words and files


@tried(500)
@given(
    st.text() | texts | st.sampled_from(["[" * 200, "-" * 200 + "1", "{" * 99, "9" * 5000, "(1,", "'a' 'b'", "&a [*a]"])
)
def test_any_word_is_a_value(word: str) -> None:
    value = parse_value(word)
    assert isinstance(value, bool | int | float | str | list | dict | type(None))


@tried(400)
@given(st.sampled_from(["topk", "x"]), values.filter(lambda value: _is_written(value)))
def test_what_is_written_as_a_word_is_read_as_it_was(key: str, value: Any) -> None:
    assert alike(parse_setting(key, write_setting(key, value)), value)


@tried(200)
@given(st.sampled_from(["title_field", "user_inter_num_interval"]), st.text() | texts)
def test_a_text_is_written_and_read_as_it_was(key: str, text: str) -> None:
    assert parse_setting(key, write_setting(key, text)) == text


def _is_written(value: Any) -> bool:
    """Whether Python's own notation of a value can be read back: not of NaN, infinity and numbers of 4,300 digits."""
    if isinstance(value, dict):
        return all(_is_written(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(_is_written, value))
    return not isinstance(value, int | float) or abs(value) < 1e300


@tried(300)
@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from(["--model=Pop", "--dataset=ml-100k", "--topk", "--", "--=1"]), max_size=5
    )
)
def test_any_words_are_a_command_or_refused(words: list[str]) -> None:
    outcome(parse_argv, words)
    outcome(parse_command, ["--model=Pop", "--dataset=ml-100k", *words])


SAMPLE = (
    b"model: BIGRec\ntopk: [1, 5]\neval_args: {split: {LS: valid_and_test}, mode: full}\nlearning_rate: 1e-4\n# end\n"
)


@tried(400)
@given(broken(SAMPLE) | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_a_config_file_of_any_bytes_holds_pairs_or_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    found, error = outcome(load_yaml, file)
    if error is None:
        assert all(isinstance(key, str) for key in found)
    else:
        assert (error.key, error.kind) == ("config_files", "file")


@tried(300)
@given(st.dictionaries(texts, values, max_size=4))
def test_settings_survive_a_config_file(tmp_path: Path, settings: dict[str, Any]) -> None:
    file = tmp_path / "written.yaml"
    try:
        text = dump_yaml(settings)
        file.write_text(text, encoding="utf-8")
    except (yaml.YAMLError, ValueError):  # numbers of more digits than Python writes
        return
    found, error = outcome(load_yaml, file)
    assert error is not None or all(alike(found[key], value) for key, value in settings.items())
    assert error is None or "\n" not in str(error)


@pytest.mark.parametrize("name", [*ODD_TEXTS, *SPECIAL_TOKENS, "x" * 5000, "a/" * 3000])
@pytest.mark.parametrize("key", ["data_path", "llm_path", "coreset_file", "sd_file", "checkpoint_dir", "domain"])
def test_a_path_of_any_text_is_looked_up_or_refused(key: str, name: str) -> None:
    outcome(resolved, "BIGRec", {key: name})
