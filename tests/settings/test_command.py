import pytest

from recbole_llm.settings.command import Command, parse_argv, parse_command, settings_for
from recbole_llm.settings.values import parse_value
from tests.refusals import refused

BOTH = ["--model=Pop,BIGRec", "--dataset=ml-100k"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("True", True),
        ("true", True),
        ("None", None),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("[1,5]", [1, 5]),
        ("1,5", [1, 5]),
        ("('a', 'b')", ["a", "b"]),
        ("[Recall, NDCG]", ["Recall", "NDCG"]),
        ("{'RS': [0.8, 0.1, 0.1]}", {"RS": [0.8, 0.1, 0.1]}),
        ("{split: {LS: valid_and_test}, mode: full}", {"split": {"LS": "valid_and_test"}, "mode": "full"}),
        ("{max_norm: 1e-1}", {"max_norm": 0.1}),
        ("'5'", "5"),
        ("NDCG@10", "NDCG@10"),
        ("a=b=c", "a=b=c"),
        ("[0,inf)", "[0,inf)"),
        ("2024-01-31", "2024-01-31"),
        ("b'x'", "b'x'"),
        ("1+2j", "1+2j"),
        ("#1", "#1"),
        ("x # y", "x # y"),
        ("@x", "@x"),
        ("a: b: c", "a: b: c"),
        ("[" * 300, "[" * 300),
    ],
)
def test_a_value_is_a_literal_else_yaml_else_text(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {trap}')",
        "!!python/object/apply:os.system ['touch {trap}']",
        "open('{trap}', 'w')",
    ],
)
def test_a_value_is_never_executed(text, tmp_path):
    trap = tmp_path / "trap"
    text = text.format(trap=trap)
    assert parse_argv([f"--domain={text}", f"--tau={text}"]) == {"domain": text, "tau": text}
    assert not trap.exists()


def test_both_forms_mean_the_same_and_a_value_may_hold_an_equals_sign():
    words = ["--epochs", "3", "--gamma", "-1", "--llm_path=/models/a=b", "--epochs=3"]
    assert parse_argv(words) == {"epochs": 3, "gamma": -1, "llm_path": "/models/a=b"}


def test_settings_that_are_text_stay_text():
    words = ["--dataset=2024", "--user_inter_num_interval=[3,5]", "--title_field='1'", "--title_with=~", "--seed=1"]
    assert parse_argv(words) == {
        "dataset": "2024",
        "user_inter_num_interval": "[3,5]",
        "title_field": "1",
        "title_with": None,
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("words", "message", "key", "kind"),
    [
        (["--epochs=3", "--epochs=4"], "--epochs is given twice, as '3' and as '4'", "epochs", "conflict"),
        (["epochs=3"], "'epochs=3' is not part of a setting", "", "unknown"),
        (["--epochs", "3", "4"], "'4' is not part of a setting", "", "unknown"),
        (
            ["--group_by_length", "--epochs=3"],
            "--group_by_length has no value; .*--group_by_length=True",
            "group_by_length",
            "missing",
        ),
        (["--epochs"], "--epochs has no value", "epochs", "missing"),
        ([*BOTH, "--quite"], "--quite has no value; did you mean quiet?", "quite", "missing"),
        (["--models=BIGRec"], "no model is given; write --model for --models", "model", "missing"),
        (["--modle=Pop", "--dataset=x"], "no model is given; write --model for --modle", "model", "missing"),
        (["--model=Pop", "--datset=x"], "no dataset is given; write --dataset for --datset", "dataset", "missing"),
        (["--model=Pop", "--data_path=x"], "no dataset is given; add for", "dataset", "missing"),
        (["--Model=BIGRec", "--dataset=x"], "no model is given; write --model for --Model", "model", "missing"),
        (["--model=BIGRec", "--data=x"], "no dataset is given; write --dataset for --data", "dataset", "missing"),
        (["--=3"], "'--=3' is not part of a setting", "", "unknown"),
        (["--model=BIGRec"], "no dataset is given", "dataset", "missing"),
        (["--dataset=ml-100k"], "no model is given", "model", "missing"),
        (["--model=Pop,Pop", "--dataset=x"], "names a model twice", "model", "conflict"),
        (
            [*BOTH, "--BigRec.epochs=1"],
            "BigRec.epochs: no model named 'BigRec' is run; did you mean BIGRec",
            "model",
            "unknown",
        ),
        (
            [*BOTH, "--SASRec.epochs=1"],
            "no model named 'SASRec' is run; the models are Pop, BIGRec",
            "model",
            "unknown",
        ),
        ([*BOTH, "--seed=1,2,3"], "--seed takes one integer; for several runs use --seeds=1,2,3", "seed", "value"),
        ([*BOTH, "--BIGRec.seed=[1,2]"], "BIGRec.seed: --seed takes one integer", "BIGRec.seed", "value"),
        ([*BOTH, "--seeds=0"], "seeds: 0 is not allowed; give a number of runs", "seeds", "value"),
        (
            [*BOTH, "--config_files=absent.yaml"],
            "config file absent.yaml does not exist; .*paper/bigrec.yaml",
            "config_files",
            "file",
        ),
    ],
)
def test_mistakes_are_named(words, message, key, kind):
    with refused(key, kind, message) as caught:
        parse_command(words)
    assert "\n" not in str(caught.value)


def test_a_command_is_sorted():
    words = ["--model", "Pop, BIGRec", "--dataset=ml-100k", "--topk=[5,10]", "--BIGRec.epochs=4"]
    assert parse_command(words) == Command(
        ["Pop", "BIGRec"], "ml-100k", [], {"topk": [5, 10]}, {"BIGRec": {"epochs": 4}}
    )
    assert parse_command(["--model=A", "--help"]).help
    assert [parse_command([*BOTH, f"--seeds={word}"]).seeds for word in ("5", "1,2", "[7]")] == [5, (1, 2), (7,)]
    several = parse_command([*BOTH, "--seeds=5", "--seed=7", "--baseline=Pop"])
    assert (several.shared, several.baseline) == ({"seed": 7}, "Pop")


def test_model_and_data_set_may_stand_in_a_config_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: [Pop, BIGRec]\ndataset: ml-100k\n")
    command = parse_command([f"--config_files={file}", "--dataset=other"])
    assert (command.models, command.dataset) == (["Pop", "BIGRec"], "other")


def test_a_bare_key_reaches_every_model_that_knows_it_and_a_prefixed_one_only_its_own():
    command = parse_command([*BOTH, "--epochs=3", "--lora_r=4", "--BIGRec.epochs=5", "--Pop.seed=1"])
    assert settings_for("Pop", command) == {"epochs": 3, "seed": 1}
    assert settings_for("BIGRec", command) == {"epochs": 5, "lora_r": 4}


def test_later_places_win(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 1\nlora_r: 1\nseed: 1\nBIGRec.num_beams: 1\nnum_beams: 9")
    (tmp_path / "b.yaml").write_text("epochs: 2\nlora_r: 2\nlearning_rate: 1e-5\nmodel: SASRec")
    command = parse_command([*BOTH, f"--config_files={tmp_path}/a.yaml,{tmp_path}/b.yaml", "--epochs=3"])
    expected = {"epochs": 3, "lora_r": 2, "seed": 1, "num_beams": 1, "learning_rate": 1e-5}
    assert settings_for("BIGRec", command) == expected
    assert settings_for("Pop", command) == {"epochs": 3, "seed": 1, "learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("words", "key", "kind", "message"),
    [
        (["--lora_rr=4"], "lora_rr", "unknown", "--lora_rr is not a setting of Pop or BIGRec; did you mean lora_r"),
        (["--Pop.lora_r=4"], "lora_r", "unknown", "--Pop.lora_r is not a setting of Pop"),
        (["--BIGRec.epoch=4"], "epoch", "unknown", "--BIGRec.epoch is not a setting of BIGRec; did you mean epochs"),
        (["--nproc=2"], "nproc", "conflict", "nproc: RecBole's own processes are not used"),
    ],
)
def test_a_key_that_no_model_knows_is_refused(words, key, kind, message):
    command = parse_command([*BOTH, *words])
    for model in command.models:
        with refused(key, kind, message):
            settings_for(model, command)


def test_an_unknown_key_of_a_config_file_is_refused_with_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("num_beam: 4")
    command = parse_command([*BOTH, f"--config_files={file}"])
    with refused("num_beam", "unknown", f"config file {file}: num_beam is not a setting of .*did you mean num_beams"):
        settings_for("BIGRec", command)
