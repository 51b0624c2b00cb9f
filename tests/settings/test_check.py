"""Commands are refused before anything heavy is imported, with the message that the config would have had."""

from __future__ import annotations

import inspect
import re
from functools import cache

import pytest
from recbole.data.dataset import KnowledgeBasedDataset

from recbole_llm.data.rows import _dataset_class
from recbole_llm.errors import InputError
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.config import Config
from recbole_llm.settings.defaults import known_keys
from recbole_llm.settings.metric_names import register_list_metrics
from recbole_llm.settings.models import facts_by_name, facts_of, find_model, llm_model_names, recbole_models
from recbole_llm.settings.recommender_checks import is_of_a_sequence, reads_graph
from recbole_llm.settings.resolve import resolve
from recbole_llm.settings.schema import OTHER_NAMES, UNREAD
from recbole_llm.settings.source import read_class
from recbole_llm.settings.task_checks import metric_kinds
from tests.processes import fresh_python
from tests.refusals import refused
from tests.wordings import Refused, refused_commands

ERROR = "recbole-llm: error: "


def words(line: str) -> list[str]:
    return [*line.split(" "), "--dataset=ml-100k"]


def test_help_and_refused_commands_import_nothing_heavy():
    code = f"""
import sys
from recbole_llm.experiment.command import main
statuses = [main(["--help"]), main(["--help", "lora"])]
statuses += [main(words) for words in {[command.words for command in refused_commands()]}]
heavy = {{"torch", "recbole", "transformers", "peft", "pandas", "scipy", "sklearn", "faiss", "matplotlib"}}
print(statuses, sorted(heavy & set(sys.modules)))
"""
    done = fresh_python(code=code)
    assert done.stdout.splitlines()[-1] == f"{[0, 0] + [2] * len(refused_commands())} []"
    printed = [line.removeprefix(ERROR) for line in done.stderr.splitlines() if line.startswith(ERROR)]
    for command, line in zip(refused_commands(), printed, strict=True):
        assert re.search(command.pattern, line)


@cache
def settings_refused(command: Refused) -> bool:
    """Whether the settings of a model, alone, are what is refused, and neither files nor other models."""
    try:
        parsed = parse_command(command.words)
        for model in parsed.models:
            resolve(model, parsed.dataset, settings_for(model, parsed))
    except InputError:
        return bool(command.key)
    return False


WITH_A_KEY = [command for command in refused_commands() if command.key]


@pytest.mark.parametrize("command", WITH_A_KEY, ids=lambda command: command.line)
def test_what_is_refused_lightly_is_refused_by_the_config_in_the_same_words(command):
    """If the settings alone are refused, which is found out here: every worker collects, and all take a second."""
    if not settings_refused(command):
        return
    with refused(command.key, command.kind, command.pattern):
        parsed = parse_command(command.words)
        for model in parsed.models:
            Config(model, parsed.dataset, settings=settings_for(model, parsed))


def test_most_of_what_is_refused_is_refused_for_the_settings_alone():
    assert sum(map(settings_refused, refused_commands())) > 150


@pytest.mark.parametrize("name", [*llm_model_names(), *recbole_models()])
def test_facts_read_from_source_are_those_of_the_class(name):
    if name in ("LightGBM", "XGBoost"):
        pytest.skip("their packages may be missing")
    assert facts_by_name(name) == facts_of(find_model(name))


@pytest.mark.parametrize("name", [name for name in recbole_models() if name not in ("LightGBM", "XGBoost")])
def test_what_a_recommender_gives_is_read_from_its_source(name):
    model = find_model(name)
    source = read_class(recbole_models()[name])
    assert source is not None
    inputs = source.method("forward")
    assert is_of_a_sequence(inputs) == is_of_a_sequence(list(inspect.signature(model.forward).parameters)[1:])
    own_class = _dataset_class({"model": name, "MODEL_TYPE": model.type})
    assert reads_graph(name, facts_by_name(name)) == issubclass(own_class, KnowledgeBasedDataset)


def test_kinds_of_metrics_are_recbole_own():
    """And ours, which are in RecBole's tables once its config is to be made."""
    from recbole.evaluator import metric_types, metrics_dict

    register_list_metrics()
    assert metric_kinds() == {known.__name__: metric_types[name].name for name, known in metrics_dict.items()}


def test_what_the_light_check_accepts_the_config_accepts():
    for line in (
        "--model=Pop,SASRec,BIGRec --topk=[5,10] --valid_metric=NDCG@10",
        "--model=SOFT --alpha=[10,1] --llm_path=some/llm",
        "--model=iLoRA --candidates=20 --ilora_gate=mlp",
        "--model=TALLRec,FM --epochs=1",
        "--model=GORACS --llm_recommender=TALLRec --coreset_size=0.5",
        "--model=BPR --train_neg_sample_args={'distribution':'popularity'}",
    ):
        command = parse_command(words(line))
        for resolved in check_command(command):
            config = Config(resolved.model, command.dataset, settings=settings_for(resolved.model, command))
            assert config.task == resolved.task and config["valid_metric"] == resolved["valid_metric"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--model=Pop,SASRec,BIGRec --BIGRec.load_col={'inter':['user_id','item_id','timestamp','nope']}", "load_col"),
        (
            "--model=BIGRec --load_col={'inter':['user_id','item_id','timestamp'],'item':['item_id']}",
            "title_field",
        ),
        ("--model=Pop,BIGRec --BIGRec.item_text_fields=[klass]", "item_text_fields"),
    ],
)
def test_columns_are_checked_for_all_models_against_the_headers(line, key):
    with refused(key, "data"):
        check_command(parse_command(words(line)))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("--lr=1e-4", "learning_rate"),
        ("--config_file=a.yaml", "config_files"),
        ("--num_train_epochs=3", "epochs"),
        ("--load-in-8bit=True", "quant"),
        ("--MAX_SEQ_LENGTH=3", "MAX_ITEM_LIST_LENGTH"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(word, name):
    key = word.removeprefix("--").partition("=")[0]
    with refused(key, "unknown", f"--{key} is not a setting of BIGRec; it is called {name} here$"):
        check_command(parse_command(words(f"--model=BIGRec {word}")))


def test_every_name_of_another_tool_leads_to_a_setting_and_is_none_itself():
    known = {*known_keys("BIGRec", "ml-100k"), "config_files", "model", "dataset"}
    assert {*OTHER_NAMES.values()} <= known
    assert not {*OTHER_NAMES} & known - {*UNREAD}


def test_the_help_of_a_verb_and_its_misspelling(capsys):
    from recbole_llm.experiment.command import main

    assert main(["--help", "tune"]) == 0
    assert "usage: recbole-llm tune" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help=recommend"])
    assert "usage: recbole-llm recommend" in capsys.readouterr().out
    assert main(["recomend", "saved/x"]) == 2
    assert "there is no command 'recomend'; did you mean recommend?" in capsys.readouterr().err


def test_a_file_is_no_folder_of_an_llm(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with refused("llm_path", "file", "model.safetensors is a file; give the folder that holds it"):
        check_command(parse_command(words(f"--model=BIGRec --llm_path={tmp_path}/model.safetensors")))


def test_help_about_a_word(capsys):
    from recbole_llm.experiment.command import main

    assert main(["--help", "beams"]) == 0
    out = capsys.readouterr().out
    assert "--num_beams (int; default 4; LLM models)\n    Beams of the search, in [1, 1024]." in out
    assert "lora_r" not in out
    assert main(["--help=damping"]) == 0
    assert "--influence_damping" in capsys.readouterr().out
    assert main(["--help", "n_layers"]) == 0
    assert re.search(
        r"--n_layers \(of RecBole's models, with their defaults\)\n    .*SASRec 2", capsys.readouterr().out, re.DOTALL
    )
    assert main(["--help", "bems"]) == 0
    assert "No setting's name or meaning holds 'bems'" in capsys.readouterr().out
