import re
from functools import cache

import pytest
import yaml

from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.settings.declarations import classic_keys, llm_keys, model_keys
from recbole_llm.settings.schema import check_known, check_value
from tests.refusals import refused

OTHERS = ("prompt", "accelerate")  # folders of files that hold no settings
OUR_FILES = sorted(file for file in find_properties().rglob("*.yaml") if file.parent.name not in OTHERS)
SETTING_FILES = [file for file in OUR_FILES if file.name != "recbole_keys.yaml"]


def name_of(file):
    return str(file.relative_to(find_properties()))


@cache
def recboles_own_keys():
    """Keys of RecBole's models, which files of models without an LLM set too."""
    return {key for file in (recbole_folder() / "properties").rglob("*.yaml") for key in load_yaml(file)}


@pytest.mark.parametrize("file", SETTING_FILES, ids=name_of)
def test_every_key_of_our_property_files_has_a_schema_entry_that_accepts_it(file):
    settings = load_yaml(file)
    assert set(settings) <= {*llm_keys(), *model_keys(), *recboles_own_keys()}
    for key, value in settings.items():
        check_value(key, value)


@pytest.mark.parametrize("file", OUR_FILES, ids=name_of)
def test_every_key_of_our_property_files_says_its_type_and_meaning(file):
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\w", line)]
    assert (
        lines
        and [line for line in lines if not re.search(r"# \((bool|int|float|str|list|dict)[\w ]*\) \w", line)] == []
    )


@pytest.mark.parametrize("file", OUR_FILES, ids=name_of)
def test_no_property_file_names_a_key_twice(file):
    keys = [key.value for key, _ in yaml.compose(file.read_text(encoding="utf-8")).value]
    assert len(keys) == len(set(keys))


def test_recbole_own_defaults_pass_the_schema_of_its_models():
    for file in (recbole_folder() / "properties").rglob("*.yaml"):
        if not file.name.endswith("url.yaml"):
            for key, value in load_yaml(file).items():
                check_value(key, value, default=value, is_llm=False)


def test_a_name_shared_with_a_recbole_model_keeps_that_models_meaning():
    check_value("reweight", False, default=True, is_llm=False)  # DiffRec: a switch
    assert "reweight" not in classic_keys()
    with refused("reweight", "value", "reweight: False is not allowed; give one of none, popularity, collaborative"):
        check_value("reweight", False)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("epochs", [0, 7], [-1, 1.5, "7", True, None]),
        ("train_batch_size", [1], [0, -4, 2.0]),
        ("learning_rate", [1e-4, 1], [0, -1.0, float("nan"), float("inf"), "1e-4x", True]),
        ("lora_dropout", [0, 0.05], [1, 1.0, -0.1]),
        ("lora_target_modules", ["auto", ["q_proj", "v_proj"]], [[], [1], 3]),
        ("coreset_size", [1, 100, 0.5, 1.0], [0, 0.0, 1.5, -1, True]),
        ("warmup_steps", [0, 20, 0.05, 0.0, 1.0], [-1, 1.5, -0.1, 20.0, True, None]),
        ("topk", [5, [1, 5]], [0, -1, [], [5, 0], [1.5], "ten"]),
        ("metrics", ["NDCG", ["NDCG", "Hit"]], [5, [5], []]),
        ("item_text_fields", [[], ["class"], None], ["class", [3]]),
        ("quant", [None, "8bit", "4bit"], ["2bit", 8]),
        ("llm_dtype", ["float32", "auto"], ["fp32", None]),
        ("micro_batch_tokens", [1, "auto"], [0, "much", 1.5, None]),
        ("generation_batch_tokens", [1, "auto"], [0, "Auto", True]),
        ("train_sample_size", [None, 1], [0, 0.5]),
        ("seed", [0, 2**32 - 1], [-1, 2**32, 1.0]),
        ("gradient_checkpointing", [True, False], [1, "yes", None]),
        ("user_inter_num_interval", [None, "[3,inf)", "(2, 10]", "[0,3];(5,inf)"], [[3, 5], 3, "many", "3,5"]),
        ("eval_args", [{}, {"mode": "uni100"}, {"split": {"RS": [8, 1, 1]}}, {"group_by": None}], ["full", None]),
    ],
)
def test_types_and_ranges(key, good, bad):
    for value in good:
        check_value(key, value)
    for value in bad:
        with refused(key, "value", f"^{key}: .* is not allowed; give "):
            check_value(key, value)


@pytest.mark.parametrize(
    ("eval_args", "message", "kind"),
    [
        ({"spilt": {}}, "there is no key 'spilt'; did you mean split", "unknown"),
        ({"split": {"LS": "all"}}, "split: .* is not allowed", "value"),
        ({"split": {"RS": [0.8, 0.2]}}, "split: .* is not allowed", "value"),
        ({"split": {"RS": [0.8, 0.1, 0.1], "LS": "valid_only"}}, "split: .* is not allowed", "value"),
        ({"order": "time"}, "order: 'time' is not allowed; give one of TO, RO", "value"),
        ({"group_by": "item"}, "group_by: 'item' is not allowed", "value"),
        ({"mode": 100}, "mode: 100 is not allowed", "value"),
    ],
)
def test_evaluation_arguments_are_checked_inside(eval_args, message, kind):
    with refused("eval_args", kind, message):
        check_value("eval_args", eval_args)


def test_the_type_of_a_recbole_key_is_that_of_its_default():
    check_value("hidden_size", 32, default=64)
    check_value("dropout_prob", 0, default=0.1)
    check_value("inner_name", [1], default="gelu")
    for value, default in (("abc", 64), ([64], 64), (True, 0.5), ("yes", True)):
        with refused("hidden_size", "value", "hidden_size: .* is not allowed"):
            check_value("hidden_size", value, default=default)


def test_an_unknown_key_is_refused_with_the_nearest():
    check_known("epochs", ["epochs"], "BIGRec")
    with refused("epoch", "unknown", "^--epoch is not a setting of BIGRec; did you mean epochs?"):
        check_known("epoch", ["epochs", "topk"], "BIGRec", "--")
    with refused("local_rank", "conflict"):
        check_known("local_rank", ["local_rank"], "BIGRec")
