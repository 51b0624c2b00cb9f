"""Values that no setting takes, found by trying thousands of them (tests/hostile): each cause once."""

from __future__ import annotations

from typing import Any

import pytest

from recbole_llm.property_files import dump_yaml, load_yaml
from recbole_llm.settings.check import check_resolved
from recbole_llm.settings.config import Config
from recbole_llm.settings.declarations import llm_keys
from recbole_llm.settings.resolve import resolve
from tests.refusals import refused

LONG = "a" * 300  # no file system takes a name of so many characters


def check(model: str, **settings: Any) -> Any:
    found = resolve(model, "ml-100k", settings)
    check_resolved([found])
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("topk", 10**400),
        ("epochs", 2**63),
        ("warmup_steps", 10**400),
        ("learning_rate", 10**400),
        ("sample_seed", 2**32),
        ("title_field", "a\0b"),
        ("encoding", "utf-8\0"),
        ("seq_separator", ""),
        ("field_separator", ""),
        ("field_separator", "\n"),
        ("load_col", {"inter": 5}),
        ("load_col", {"inter": [None]}),
        ("load_col", {"inter": None}),
        ("unload_col", {"inter": None}),
        ("unload_col", {"item": "*"}),
        ("user_inter_num_interval", "[.,inf)"),
        ("item_inter_num_interval", "[1.2.3,inf)"),
        ("model_of_nothing", 3),
    ],
)
def test_a_value_that_would_fail_later_is_refused(key: str, value: Any) -> None:
    with refused(key, "unknown" if key == "model_of_nothing" else "value"):
        check("BIGRec", **{key: value})


@pytest.mark.parametrize(
    "value", [{"sample_num": 0}, {"sample_num": "x"}, {"alpha": -1}, {"dynamic": 3}, {"number": 1}]
)
def test_negative_samples_that_recbole_would_trip_over_are_refused(value: dict[str, Any]) -> None:
    with refused("train_neg_sample_args", "value"):
        check("BPR", train_neg_sample_args=value)


def test_negative_samples_keep_recboles_own_of_what_is_left_out() -> None:
    """RecBole looks for every one of them, and fails without a word of the setting."""
    config = Config("BPR", "ml-100k", settings={"train_neg_sample_args": {"sample_num": 2}})
    expected = {"distribution": "uniform", "sample_num": 2, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    assert config["train_neg_sample_args"] == expected
    again = Config(
        "SASRec", "ml-100k", settings={"train_neg_sample_args": Config("SASRec", "ml-100k")["train_neg_sample_args"]}
    )
    assert again["train_neg_sample_args"]["distribution"] == "none"


@pytest.mark.parametrize("mode", ["uni99999999", "pop" + "9" * 30, "uni\u0661"])
def test_more_sampled_items_than_memory_holds_are_refused(mode: str) -> None:
    with refused("eval_args", "conflict"):
        check("Pop", eval_args={"mode": mode})


@pytest.mark.parametrize("key", ["data_path", "llm_path", "checkpoint_dir", "coreset_file", "domain"])
def test_a_name_that_no_file_can_have_is_refused(key: str) -> None:
    with refused(key, "file", "cannot be looked up"):
        check("BIGRec", **{key: LONG})


@pytest.mark.parametrize(
    ("model", "dataset", "key"), [(5, "ml-100k", "model"), (["Pop"], "ml-100k", "model"), ("Pop", 5, "dataset")]
)
def test_a_name_that_is_no_text_is_refused(model: Any, dataset: Any, key: str) -> None:
    with refused(key, "value"):
        resolve(model, dataset, {})


def test_a_data_set_of_a_name_that_no_folder_can_have_is_refused() -> None:
    with refused("dataset", "file"):
        resolve("Pop", LONG, {})


@pytest.mark.parametrize("given", [5, None, "topk", [1], {"topk": 1}])
def test_a_changed_list_of_given_settings_is_refused(given: Any) -> None:
    with refused("given", "file"):
        check("Pop", given=given, topk=3)


def test_a_recommender_of_no_name_is_refused() -> None:
    with refused("llm_recommender", "value"):
        check("SOFT", llm_recommender=["BIGRec"])


def test_a_number_of_five_thousand_digits_is_told_by_its_type() -> None:
    with refused("topk", "value", "this int is not allowed; give an integer >= 1"):
        llm_keys()["topk"].check(10**5000)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epochs: 1\ntopk: 5\nepochs: 2\n", "'epochs' is given twice; keep one"),
        ("eval_args: {mode: full, mode: uni100}\n", "'mode' is given twice"),
        ("a: " + "[" * 5000, "nests its values too deep|not valid YAML"),
        ("a: 2020-99-99\n", "not valid YAML"),
    ],
)
def test_a_config_file_that_loses_or_hides_values_is_refused(tmp_path, content, words) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with refused("config_files", "file", words):
        load_yaml(tmp_path / "own.yaml")


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\n", "\ufeff", "x\ty", "1e5", "~", "\x1b", "é"])
def test_a_text_survives_the_config_file_of_a_run(tmp_path, text) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml({"seq_separator": text, text: text}), encoding="utf-8")
    assert load_yaml(tmp_path / "config.yaml") == {"seq_separator": text, text: text}
