import os
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.model.sequential_recommender import SASRec
from recbole.utils import argument_list

from recbole_llm.property_files import dump_yaml, find_properties, load_yaml, recbole_folder
from recbole_llm.registry import AXES
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.config import FOLDERS, Config
from recbole_llm.settings.data_folder import built_in_folder
from recbole_llm.settings.defaults import known_keys, union_columns
from recbole_llm.settings.models import recbole_models
from recbole_llm.settings.resolve import resolve
from tests.refusals import refused
from tests.test_registry import own_properties  # noqa: F401

JUDGE = {
    "filter_inter_by_user_or_item": False,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "repeatable": True,
    "metrics": ["Recall", "NDCG", "MRR", "Hit"],
    "topk": [1, 5, 10, 20],
    "valid_metric": "MRR@10",
    "MAX_ITEM_LIST_LENGTH": 10,
}
COLUMNS = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """RecBole sets CUDA_VISIBLE_DEVICES; put it back after each test, and run as if started by hand."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    for name in [name for name in os.environ if name == "LOCAL_RANK" or name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path):
    """A folder with two data sets, one of them split into benchmark files."""
    for name, file in (("small", "small.inter"), ("cut", "cut.train.inter")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t1\t1\n")
    return tmp_path


# ---- RecBole's own models


def test_sasrec_has_the_config_of_recbole_under_the_same_settings(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    settings = {**JUDGE, **COLUMNS, "train_neg_sample_args": None, "hidden_size": 32}
    ours = Config("SASRec", "ml-100k", config_dict=settings)
    theirs = RecBoleConfig("SASRec", "ml-100k", config_dict={**settings, "show_progress": False})  # no terminal here
    assert {key: ours[key] for key in theirs.final_config_dict} == theirs.final_config_dict


@pytest.mark.parametrize("model", ["Pop", "SASRec", "LightGCN", "DIN", "KGAT", "GRU4RecKG", "BIGRec"])
def test_one_judge_for_every_model(model):
    config = Config(model, "ml-100k")
    mode = {"valid": "full", "test": "full"}
    expected = {**JUDGE, "eval_args": {**JUDGE["eval_args"], "mode": mode}}
    expected["valid_metric"] = "NDCG@10" if model == "BIGRec" else "MRR@10"
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("model", "distribution"),
    [
        ("SASRec", "none"),
        ("BERT4Rec", "none"),
        ("BIGRec", "none"),
        ("BPR", "uniform"),
        ("FPMC", "uniform"),
        ("DIN", "uniform"),
    ],
)
def test_negative_samples_are_drawn_where_the_loss_needs_them(model, distribution):
    assert Config(model, "ml-100k")["train_neg_sample_args"]["distribution"] == distribution


def test_negative_samples_follow_the_loss_the_user_chooses():
    pairs = Config("SASRec", "ml-100k", config_dict={"loss_type": "BPR"})
    assert pairs["train_neg_sample_args"]["distribution"] == "uniform"
    for model in ("SASRec", "BIGRec"):
        with refused(
            "train_neg_sample_args", "conflict", f"train_neg_sample_args: {model} trains without negative samples"
        ):
            Config(model, "ml-100k", config_dict={"train_neg_sample_args": {"distribution": "uniform"}})


def test_click_models_are_judged_by_clicks():
    config = Config("FM", "ml-100k")
    assert (config.task, config["metrics"], config["eval_args"]["mode"]) == (
        "click",
        ["AUC", "LogLoss"],
        {"valid": "labeled", "test": "labeled"},
    )
    with refused("metrics", "conflict", "metrics: FM predicts clicks, so 'NDCG' does not apply"):
        Config("FM", "ml-100k", config_dict={"metrics": ["NDCG"]})
    with refused("eval_args", "conflict"):
        Config("FM", "ml-100k", config_dict={"eval_args": {"mode": "full"}})
    with refused("eval_args", "conflict", "eval_args: mode: BIGRec ranks items, so 'labeled' does not apply"):
        Config("BIGRec", "ml-100k", config_dict={"eval_args": {"mode": "labeled"}})
    with refused("metrics", "conflict", "metrics: Pop ranks items, so 'AUC' does not apply"):
        Config("Pop", "ml-100k", config_dict={"metrics": "AUC"})


WRITTEN_BY_RECBOLE = set(
    "MODEL_TYPE MODEL_INPUT_TYPE eval_type device single_spec local_rank world_size valid_neg_sample_args cin "
    "feature_num test_neg_sample_args MASK_INDEX MASK_ITEM_SEQ POS_ITEMS NEG_ITEMS CROP_ITEM_SEQ CROP_ITEM_SEQ_LEN "
    "REORDER_ITEM_SEQ INVERSE_ITEM_SEQ".split()
)


def test_no_setting_that_recbole_reads_is_unknown():
    pattern = re.compile(r"""(?<![\w.])(?:self\.)?config(?:\[|\.get\()\s*["'](\w+)["']""")
    rooms = ("data", "evaluator", "model", "trainer", "utils")
    files = [file for room in rooms for file in (recbole_folder() / room).rglob("*.py") if file.stem != "hyper_tuning"]
    read = {name for file in files for name in pattern.findall(file.read_text(encoding="utf-8"))}
    trees = ("LightGBM", "XGBoost")  # their packages may be missing
    known = frozenset().union(*(known_keys(model, "ml-100k") for model in recbole_models() if model not in trees))
    for tree in trees:
        known |= set(load_yaml(find_properties() / "recbole_keys.yaml")[tree])
        known |= set(load_yaml(recbole_folder() / "properties" / "model" / f"{tree.lower()}.yaml"))
    assert len(read) > 200 and read - known == WRITTEN_BY_RECBOLE & read


# ---- reading order


def test_later_places_win(own_properties, tmp_path, monkeypatch):  # noqa: F811
    """Every place sets one key more than the next, so that each must win over all before it."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    ours = own_properties
    places = [
        ours / "evaluation.yaml",
        ours / "overall.yaml",
        ours / "model" / "BIGRec.yaml",
        ours / "model" / "Preset.yaml",
    ]
    places += [ours / "llm" / "tiny.yaml", ours / "dataset" / "ml-100k.yaml", tmp_path / "a.yaml", tmp_path / "b.yaml"]
    places[3].write_text("llm_recommender: BIGRec")
    keys = [f"place_{index}" for index in range(len(places) + 2)]
    for index, file in enumerate(places):
        text = file.read_text() if file.exists() else ""
        own = [f"{key}: {index}" for key in keys[index:]]
        file.write_text("\n".join([text, *own]))
    config = Config(
        "Preset",
        "ml-100k",
        [str(places[-2]), str(places[-1])],
        {key: len(places) for key in keys[-2:]},
        [f"--{keys[-1]}={len(places) + 1}"],
    )
    assert [config[key] for key in keys] == list(range(len(keys)))
    classic = Config("SASRec", "ml-100k")
    assert (classic["place_0"], classic["place_4"], classic["place_5"]) == (0, 0, 5)
    assert classic["llm_path"] is None and classic["llm_recommender"] is None


def test_a_later_source_wins_with_or_without_the_models_name(tmp_path):
    """Each source wins over the ones before it; the name of the model decides within one source alone."""
    places = {name: tmp_path / f"{name}.yaml" for name in ("first", "second")}

    def epochs(first: dict, second: dict, given: dict, settings: dict, argv: dict) -> int:
        for name, content in (("first", first), ("second", second)):
            places[name].write_text(dump_yaml(content))
        words = [f"--{key}={value}" for key, value in argv.items()]
        files = list(places.values())
        return Config("BPR", "ml-100k", files, given, argv=words, settings=settings)["epochs"]

    for last in range(5):
        for key in ("epochs", "BPR.epochs"):
            for before in ("epochs", "BPR.epochs"):
                sources = [{before: place + 1} for place in range(last)] + [{key: 77}] + [{}] * (4 - last)
                assert epochs(*sources) == 77
    assert epochs({}, {"epochs": 5, "BPR.epochs": 7}, {}, {}, {}) == 7


@pytest.mark.parametrize("records", [(0,), (1,), (0, 1), ()])
def test_what_several_files_give_is_the_same_from_a_command_and_from_python(tmp_path, records):
    """Of a run's record what it lists; of every other file and of the arguments, all."""
    files, given = [], {"eval_batch_size"}
    for number, content in enumerate([{"epochs": 5, "n_layers": 1}, {"seed": 7, "SASRec.hidden_size": 8}]):
        names = [*content] if number not in records else [*content][:1]
        given.update(name.removeprefix("SASRec.") for name in names)
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(dump_yaml({**content, "given": names} if number in records else content))
    words = ["--model=SASRec", "--dataset=ml-100k", f"--config_files={files[0]},{files[1]}", "--eval_batch_size=9"]
    from_command = resolve("SASRec", "ml-100k", settings_for("SASRec", parse_command(words)))
    from_python = Config("SASRec", "ml-100k", files, argv=["--eval_batch_size=9"]).resolution
    assert from_command.final == from_python.final and from_command.final["hidden_size"] == 8
    assert set(from_command.user) == set(from_python.user) == given


@pytest.mark.parametrize("given", ["5", "~", "topk", "[1]", "{topk: 1}"])
def test_a_config_file_with_a_changed_list_of_given_settings_is_refused(tmp_path, given):
    file = tmp_path / "config.yaml"
    file.write_text(f"topk: [3]\ngiven: {given}\n")
    with refused("given", "file", "take the run's own config.yaml"):
        settings_for("Pop", parse_command(["--model=Pop", "--dataset=ml-100k", f"--config_files={file}"]))
    with refused("given", "file", "take the run's own config.yaml"):
        Config("Pop", "ml-100k", [file])


def test_smollm2_has_settings_of_its_own_that_the_user_may_replace():
    changed = load_yaml(find_properties() / "llm" / "smollm2.yaml")
    assert not set(changed) & set(AXES)
    config = Config("SOFT", "ml-100k", config_dict={"llm_path": "smollm2", "lora_r": 4})
    assert {key: config[key] for key in changed} == {**changed, "lora_r": 4}


@pytest.mark.parametrize("llm", ["tiny", "smollm2"])
def test_few_shot_models_and_readers_of_items_keep_how_they_are_trained(llm):
    own = {"DEALRec": (50, 128), "GORACS": (50, 128), "TALLRec": (200, 128), "LLMEmb": (200, 2048), "Laser": (15, 32)}
    for model, regime in own.items():
        config = Config(model, "ml-100k", config_dict={"llm_path": llm})
        assert (config["epochs"], config["train_batch_size"]) == regime, model
    assert Config("Laser", "ml-100k", config_dict={"llm_path": llm})["learning_rate"] == 1e-4


def test_the_tiny_llm_file_is_read_for_the_tiny_llm_only():
    tiny, real = Config("BIGRec", "ml-100k"), Config("BIGRec", "ml-100k", config_dict={"llm_path": "some/llm"})
    changed = load_yaml(find_properties() / "llm" / "tiny.yaml")
    assert not set(changed) & set(AXES)  # what a preset stands for is the same with any LLM
    assert {key: tiny[key] for key in changed} == changed
    assert real["learning_rate"] == 1e-4 and real["tiny_steps"] is None
    assert Config("BIGRec", "ml-100k", config_dict={"learning_rate": 0.5})["learning_rate"] == 0.5


def test_the_paper_setting_is_found_by_name():
    config = Config("BIGRec", "ml-100k", ["paper/bigrec.yaml"])
    assert (config["quant"], config["train_sample_size"], config["max_new_tokens"]) == ("8bit", 1024, 128)


def test_a_preset_keeps_its_name_and_a_flag_overrides_it(own_properties):  # noqa: F811
    (own_properties / "model" / "Preset.yaml").write_text("llm_recommender: BIGRec\nadapter: full\nepochs: 3")
    preset = Config("Preset", "ml-100k", config_dict={"llm_path": "some/llm"})
    assert (preset["model"], preset.model_class.__name__, preset["epochs"], preset["train_batch_size"]) == (
        "Preset",
        "BIGRec",
        3,
        256,
    )
    point = "Preset (llm_recommender=BIGRec, adapter={}, coreset=none, curriculum=none, grounding=embedding)"
    assert preset.effective_point() == point.format("full")
    assert Config("Preset", "ml-100k", argv=["--adapter=lora"]).effective_point() == point.format("lora")
    assert Config("BIGRec", "ml-100k").effective_point() == "BIGRec (" + point.format("lora").partition("BIGRec, ")[2]
    assert Config("Pop", "ml-100k").effective_point() == "Pop"


def test_part_of_the_evaluation_arguments_leaves_the_rest():
    config = Config("SASRec", "ml-100k", config_dict={"eval_args": {"mode": {"valid": "uni100", "test": "full"}}})
    assert config["eval_args"] == {**JUDGE["eval_args"], "mode": {"valid": "uni100", "test": "full"}}
    assert config["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": 100}


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"topk": 5}, "MRR@5"),
        ({"topk": [1, 20, 5000]}, "MRR@1"),
        ({"metrics": "Hit,NDCG"}, "Hit@10"),
        ({"valid_metric": "ndcg@20"}, "ndcg@20"),
    ],
)
def test_the_validation_metric_is_one_that_is_computed(settings, metric):
    config = Config("SASRec", "ml-100k", config_dict=settings)
    assert config["valid_metric"] == metric and config["valid_metric_bigger"] is True


# ---- the user's mistakes


@pytest.mark.parametrize(
    ("settings", "message", "key", "kind"),
    [
        ({"topk": 0}, "topk: 0 is not allowed", "topk", "value"),
        ({"epochs": -1}, "epochs: -1 is not allowed; give an integer >= 0", "epochs", "value"),
        ({"train_batch_size": 0}, "train_batch_size: 0 is not allowed", "train_batch_size", "value"),
        (
            {"learning_rate": "fast"},
            "learning_rate: 'fast' is not allowed; give a number > 0",
            "learning_rate",
            "value",
        ),
        (
            {"adapter": "ilore"},
            "adapter: 'ilore' is not allowed; give one of lora, ilora, reclora, mosara, full",
            "adapter",
            "value",
        ),
        ({"metrics": ["NDGC"]}, "metrics: there is no metric named 'NDGC'; did you mean NDCG", "metrics", "unknown"),
        (
            {"valid_metric": "NDCG@7"},
            "valid_metric: 'NDCG@7' is not computed by metrics and topk; did you mean NDCG@",
            "valid_metric",
            "conflict",
        ),
        (
            {"eval_args": {"mode": "uni0"}},
            "eval_args: mode: BIGRec ranks items, so 'uni0' does not apply",
            "eval_args",
            "conflict",
        ),
        ({"repeatable": False}, "Sequential models currently only support repeatable", "repeatable", "conflict"),
        (
            {"learn_rate": 0.1},
            "learn_rate is not a setting of BIGRec; did you mean learning_rate",
            "learn_rate",
            "unknown",
        ),
        (
            {"recommender": "SASREC"},
            "recommender: RecBole has no model named 'SASREC'; did you mean SASRec",
            "recommender",
            "unknown",
        ),
        ({"llm_recommender": "Other"}, "llm_recommender: 'Other' is for presets", "llm_recommender", "conflict"),
        ({"local_rank": 1}, "local_rank: RecBole's own processes are not used", "local_rank", "conflict"),
        ({"SASRec.epochs": 1}, "SASRec.epochs: no model named 'SASRec' is run", "model", "unknown"),
        ({"config_files": "a.yaml", "epoch": 1}, "epoch is not a setting", "epoch", "unknown"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_thing(settings, message, key, kind):
    with refused(key, kind, message) as caught:
        Config("BIGRec", "ml-100k", config_dict=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message", "key", "kind"),
    [
        ("- a\n- b", "must hold `key: value` pairs", "config_files", "file"),
        ("a: [", "is not valid YAML", "config_files", "file"),
        ("epoch: 3", "did you mean epochs", "epoch", "unknown"),
    ],
)
def test_a_config_file_is_checked_too(tmp_path, text, message, key, kind):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with refused(key, kind, message):
        Config("SASRec", "ml-100k", [str(file)])


def test_model_and_data_set_are_needed():
    with refused("model", "missing", "no model is given"):
        Config(dataset="ml-100k")
    with refused("dataset", "missing", "no dataset is given"):
        Config("SASRec")
    with refused("model", "conflict", "'Pop,SASRec' names several models"):
        Config("Pop,SASRec", "ml-100k")
    assert Config(config_dict={"model": "Pop", "dataset": "ml-100k"})["model"] == "Pop"


# ---- nothing from outside, nothing left behind


def test_the_command_line_of_the_process_is_never_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-x", "tests", "--epochs=3", "--nonsense=1"])
    assert Config("SASRec", "ml-100k")["epochs"] == 300
    assert Config("SASRec", "ml-100k", argv=["--epochs", "4", "--SASRec.seed=7"])["epochs"] == 4


def test_configs_do_not_leak_into_one_another():
    lists = {name: list(value) for name, value in vars(argument_list).items() if isinstance(value, list)}
    settings = {"train_neg_sample_args": {"distribution": "popularity"}, "eval_args": {"mode": "uni10"}}
    kept = {key: dict(value) for key, value in settings.items()}
    first = Config("BPR", "ml-100k", config_dict=settings)
    first["eval_args"]["order"] = "RO"
    first["metrics"].append("MAP")
    second = Config("BPR", "ml-100k")
    assert settings == kept
    assert second["train_neg_sample_args"]["distribution"] == "uniform"
    assert (second["eval_args"]["order"], second["metrics"]) == ("TO", JUDGE["metrics"])
    assert lists == {name: list(value) for name, value in vars(argument_list).items() if isinstance(value, list)}


def test_yaml_stays_as_it_is_for_everybody_else(tmp_path):
    before = {loader: repr(loader.yaml_implicit_resolvers) for loader in (yaml.FullLoader, yaml.SafeLoader)}
    file = tmp_path / "a.yaml"
    file.write_text(
        "learning_rate: 1e-4\nweight_decay: .5e-3\nclip_grad_norm: {max_norm: 1.e+1}\ncheckpoint_dir: 1e-4x"
    )
    config = Config("SASRec", "ml-100k", [str(file)])
    assert (config["learning_rate"], config["weight_decay"], config["checkpoint_dir"]) == (1e-4, 5e-4, "1e-4x")
    assert config["clip_grad_norm"] == {"max_norm": 10.0}
    assert before == {loader: repr(loader.yaml_implicit_resolvers) for loader in (yaml.FullLoader, yaml.SafeLoader)}


def test_text_in_a_config_dict_is_read_but_not_executed(tmp_path):
    trap = f"open('{tmp_path}/trap', 'w')"
    config = Config("SASRec", "ml-100k", config_dict={"hidden_act": trap, "n_layers": "1", "topk": "[5, 10]"})
    assert (config["hidden_act"], config["n_layers"], config["topk"]) == (trap, 1, [5, 10])
    assert list(tmp_path.iterdir()) == []


def test_a_config_can_be_pickled_and_written_as_yaml():
    config = Config("BIGRec", "ml-100k")
    plain = config.to_dict()
    assert pickle.loads(pickle.dumps(config)).to_dict() == plain
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert (plain["MODEL_TYPE"], plain["device"], plain["llm_recommender"]) == (
        "SEQUENTIAL",
        str(config["device"]),
        "BIGRec",
    )


# ---- the auxiliary recommender


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BIGRec", {"seed": 7, "epochs": 3, "topk": [5, 10]}),
        ("BIGRec", {"candidates": 20}),
        ("SOFT", {"alpha": 3}),
        ("GORACS", {"llm_recommender": "TALLRec"}),
        ("SASRec", {"learning_rate": 0.01}),
        ("BPR", {}),
        ("LR", {}),
    ],
)
def test_the_settings_of_a_run_are_a_config_file_for_the_same_run(model, settings, tmp_path):
    config, file = Config(model, "ml-100k", config_dict=settings), tmp_path / "config.yaml"
    file.write_text(dump_yaml(config.settings()))
    assert settings.items() <= config.settings().items()
    again, places = Config(model, "ml-100k", [file]), {key: os.path.abspath(config[key]) for key in FOLDERS}
    assert again.to_dict() | places == config.to_dict() | places and again.settings() == config.settings()


def test_an_auxiliary_recommender_shares_data_and_evaluation_but_no_training():
    settings = {"epochs": 1, "learning_rate": 0.5, "seed": 7, "topk": [10, 50], "MAX_ITEM_LIST_LENGTH": 4}
    settings |= {"train_sample_size": 8, "valid_sample_size": 9, "recommender_config": {"hidden_size": 16}}
    config = Config("BIGRec", "ml-100k", config_dict=settings)
    helper, alone = config.for_auxiliary("SASRec"), Config("SASRec", "ml-100k")
    assert (helper["seed"], helper["MAX_ITEM_LIST_LENGTH"], helper["valid_sample_size"], helper["hidden_size"]) == (
        7,
        4,
        9,
        16,
    )
    same = ("epochs", "learning_rate", "train_batch_size", "train_sample_size", "stopping_step", "valid_metric")
    assert {key: helper[key] for key in same} == {key: alone[key] for key in same}
    assert helper["load_col"] == config["load_col"]
    with refused("hiden_size", "unknown", "hiden_size is not a setting of SASRec; did you mean hidden_size"):
        Config("BIGRec", "ml-100k", config_dict={"recommender_config": {"hiden_size": 1}}).for_auxiliary("SASRec")


def test_a_name_is_no_path_whatever_folder_of_that_name_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "llm", "minilm", "smollm2", "movie"):
        (tmp_path / name).mkdir()
    found = Config("SOFT", "ml-100k", config_dict={"coreset": "goracs", "coreset_size": 8}).settings()
    assert (found["llm_path"], found["coreset_encoder"], found["domain"]) == ("tiny", "llm", "movie")


def test_a_file_of_wordings_is_named_so_that_it_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (find_properties() / "prompt" / "movie.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text)
    assert Config("BIGRec", "ml-100k", config_dict={"domain": "recipe.yaml"}).settings()["domain"] == str(
        tmp_path / "recipe.yaml"
    )


def test_learning_facts_leave_out_where_it_ran_and_how_it_was_reported():
    facts = [
        Config("SASRec", "ml-100k", config_dict=settings).learning_facts()
        for settings in (
            {},
            {"checkpoint_dir": "x", "topk": [10], "use_gpu": False, "show_progress": False},
            {"n_layers": 3},
            {"worker": 2},
            {"metric_decimal_place": 1},
        )
    ]
    assert facts[0] == facts[1]
    assert all(one != facts[0] for one in facts[2:])


# ---- columns


def test_columns_are_added_to_those_a_model_asks_for():
    ours = load_yaml(find_properties() / "dataset" / "ml-100k.yaml")["load_col"]
    for model, item in (("FDSA", {"class"}), ("DIN", {"release_year"}), ("BIGRec", {"movie_title"})):
        columns = Config(model, "ml-100k")["load_col"]
        assert item | set(ours["item"]) == set(columns["item"]) and set(ours["inter"]) <= set(columns["inter"])
    assert Config("GRU4RecKG", "ml-100k")["load_col"]["ent"] == ["ent_id", "ent_emb"]
    assert Config("KGAT", "ml-100k")["load_col"]["link"] == ["item_id", "entity_id"]
    assert Config("BIGRec", "ml-100k", config_dict=COLUMNS)["load_col"] == COLUMNS["load_col"]


def test_columns_that_settings_name_are_loaded_for_an_unknown_data_set(folder):
    settings = {"data_path": str(folder), "title_field": "name", "title_with": "year", "TIME_FIELD": "when"}
    config = Config("BIGRec", "small", config_dict=settings)
    assert config["load_col"] == {"inter": ["user_id", "item_id", "when"], "item": ["item_id", "name", "year"]}


def test_columns_left_out_by_the_user_win_over_our_lists():
    columns = Config("SASRec", "ml-100k", config_dict={"unload_col": {"item": ["class"]}})["load_col"]
    assert columns == {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": "*"}


def test_all_models_of_a_command_load_the_same_columns():
    lists = [{"inter": ["a", "b"]}, {"inter": ["b", "c"], "item": "*"}, {"item": ["x"]}]
    assert union_columns(lists) == {"inter": ["a", "b", "c"], "item": "*"}
    assert union_columns([{"inter": ["a"]}, None]) is None


# ---- where the data lies


def test_data_path_may_end_with_the_data_set_or_not(folder):
    for name in ("small", "cut"):
        for path in (folder, folder / name):
            config = Config("SASRec", name, config_dict={"data_path": str(path)})
            assert Path(config["data_path"]) == folder / name


def test_ml_100k_is_recbole_own_unless_data_path_holds_it(folder):
    bundled = Path(Config("Pop", "ml-100k")["data_path"]).resolve()
    assert (bundled / "ml-100k.inter").is_file()
    assert Path(built_in_folder()).resolve() == bundled
    assert Path(Config("Pop", "ml-100k", config_dict={"data_path": str(folder)})["data_path"]).resolve() == bundled
    (folder / "ml-100k").mkdir()
    (folder / "ml-100k" / "ml-100k.inter").write_text("user_id:token\titem_id:token\n")
    assert Config("Pop", "ml-100k", config_dict={"data_path": str(folder)})["data_path"] == str(folder / "ml-100k")


def test_an_ml_100k_in_the_usual_folder_is_the_one_that_is_read(folder, monkeypatch):
    """With the property file beside it: never one's settings for the other's rows."""
    own = folder / "dataset" / "ml-100k"
    own.mkdir(parents=True)
    (own / "ml-100k.inter").write_text("user_id:token\titem_id:token\n")
    (own / "ml-100k.yaml").write_text("MAX_ITEM_LIST_LENGTH: 7\n")
    monkeypatch.chdir(folder)
    config = Config("SASRec", "ml-100k")
    assert Path(config["data_path"]).resolve() == own.resolve() and config["MAX_ITEM_LIST_LENGTH"] == 7


def test_a_missing_data_set_is_named_with_what_is_there(folder):
    with refused("dataset", "unknown", f"no data set 'smal' in {folder}; found there: cut, small; did you mean small?"):
        Config("SASRec", "smal", config_dict={"data_path": str(folder)})
    with refused("data_path", "file", "the folder .*/absent does not exist"):
        Config("SASRec", "small", config_dict={"data_path": str(folder / "absent")})
    # RecBole knows where to get this one from
    assert Config("SASRec", "ml-1m", config_dict={"data_path": str(folder)})["data_path"] == str(folder / "ml-1m")


@pytest.mark.parametrize("name", [file.stem for file in (find_properties() / "dataset").glob("*.yaml")])
def test_the_fields_of_a_data_set_exist(name):
    folder = Path(__file__).parents[2] / "shared" / "data"
    if name != "ml-100k" and not (folder / name).is_dir():
        pytest.skip("the shared data sets are not here")
    config = Config("BIGRec", name, config_dict={} if name == "ml-100k" else {"data_path": str(folder)})
    for suffix, wanted in config["load_col"].items():
        header = (Path(config["data_path"]) / f"{name}.{suffix}").read_text(encoding="utf-8").partition("\n")[0]
        assert set(wanted) <= {column.partition(":")[0] for column in header.split("\t")}
    assert {config["title_field"], *config["item_text_fields"]} <= set(config["load_col"]["item"])
    assert (find_properties() / "prompt" / f"{config['domain']}.yaml").is_file()


# ---- devices


def test_without_a_launcher_devices_are_chosen_as_in_recbole():
    assert Config("Pop", "ml-100k", argv=["--gpu_id=2,3"])["gpu_id"] == "2,3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert Config("Pop", "ml-100k", config_dict={"gpu_id": ""})["device"] == torch.device("cpu")


@pytest.mark.parametrize("settings", [{"use_gpu": False}, {"use_gpu": False, "gpu_id": "5"}])
def test_use_gpu_false_means_the_cpu_and_touches_nothing(settings, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Config("Pop", "ml-100k", config_dict=settings)["device"] == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({"LOCAL_RANK": "1"}, torch.device("cuda", 1)),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, torch.device("cuda", 0)),
        ({"LOCAL_RANK": "1", "ACCELERATE_USE_CPU": "true"}, torch.device("cpu")),
    ],
)
def test_under_a_launcher_each_process_takes_its_own_gpu_and_changes_no_variable(environment, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {"CUDA_VISIBLE_DEVICES": "4,5", **environment}.items():
        monkeypatch.setenv(name, value)
    config = Config("Pop", "ml-100k", config_dict={"gpu_id": "0"})
    assert config["device"] == device and os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert (config["single_spec"], config["local_rank"]) == (True, 0)


def test_a_class_can_be_given_instead_of_a_name():
    class Mine(SASRec):
        pass

    config = Config(Mine, "ml-100k", config_dict={"loss_type": "CE"})
    assert (config["model"], config.model_class, config.is_llm) == ("Mine", Mine, False)
