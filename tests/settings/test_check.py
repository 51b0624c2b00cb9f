"""Commands are refused before anything heavy is imported, with the message that the config would have had."""

from __future__ import annotations

import inspect

import pytest
from recbole.data.dataset import KnowledgeBasedDataset

from recbole_llm.data.rows import _dataset_class
from recbole_llm.errors import InputError
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.config import Config
from recbole_llm.settings.models import facts_by_name, facts_of, find_model, llm_model_names, recbole_models
from recbole_llm.settings.recommender_checks import is_of_a_sequence, reads_graph
from recbole_llm.settings.source import read_class
from recbole_llm.settings.task_checks import metric_kinds
from tests.processes import fresh_python

REFUSED = [
    "--model=BIGrec",
    "--model=BIGRec --dataset=nowhere",
    "--model=BIGRec --lora_rank=4",
    "--model=BIGRec --lora_r=0",
    "--model=BIGRec --adapter=lorra",
    "--model=BIGRec --recommender=SASRek",
    "--model=BIGRec --title_field=name",
    "--model=BIGRec --domain=moive",
    "--model=BIGRec --llm_path=x --metrics=[NDGC]",
    "--model=BIGRec --valid_metric=NDCG@7",
    "--model=BIGRec --curriculum=fixed:1.5",
    "--model=BIGRec --tiny_hidden_size=30",
    "--model=iLoRA --lora_r=6",
    "--model=GORACS --goracs_compat=reference --goracs_method=approximate",
    "--model=TALLRec --reweight=popularity",
    "--model=SASRec --repeatable=False",
    "--model=Pop,FM",
    "--model=Pop,SASRec,BIGRec --BIGRec.load_col={'inter':['user_id','item_id','timestamp','nope']}",
    "--model=Pop --TIME_FIELD=when",
    "--model=Pop --epochs",
    "--model=Pop --state=LOUD",
    "--model=SASRec --eval_args={'split':{'LS':'valid_only'}}",
    "--model=SASRec --eval_args={'split':{'RS':[0.9,0.1,0]}}",
    "--model=BIGRec --lm_weight=0.5",
    "--model=BIGRec --faiss_search=nprobe=8",
    "--model=BIGRec --faiss_index=Flatt",
    "--model=BIGRec --grounding=likelihood --reweight=popularity",
    "--model=BIGRec --grounding=constrained --reweight=popularity",
    "--model=BIGRec --grounding=constrained --num_beams=4 --topk=[1,10]",
    "--model=BIGRec --grounding=constrained --num_beams=20 --eval_args={'mode':'uni5'}",
    "--model=BIGRec --reweight=popularity --epochs=0 --eval_args={'split':{'LS':'test_only'}}",
    "--model=BIGRec --reweight=popularity --eval_args={'mode':'uni5'}",
    "--model=BIGRec --eval_args={'split':{'LS':'test_only'}}",
    "--model=TALLRec --eval_args={'split':{'RS':[0.9,0,0.1]}}",
    "--model=SOFT --alpha=[10,1] --stopping_step=0 --eval_args={'split':{'LS':'test_only'}}",
    "--model=SOFT --alpha=[10,1] --eval_step=0",
    "--model=TALLRec --curriculum=adaptive",
    "--model=BIGRec --coreset=dsir --stopping_step=0 --eval_args={'split':{'LS':'test_only'}}",
    "--model=BIGRec --coreset=dealrec --adapter=ilora --ilora_permuted=True",
    "--model=BIGRec --coreset=dealrec --influence_scale=25",
    "--model=BIGRec --coreset=dealrec --influence_method=exact --influence_steps=9",
    "--model=TALLRec --coreset=dealrec",
    "--model=SASRec,LLaRA --candidates=5 --LLaRA.candidates=~",
    "--model=LLaRA,SASRec --candidates=5 --SASRec.seed=6",
    "--model=FM --threshold=~",
    "--model=BIGRec --learner=sparse_adam",
    "--model=LLaRA --recommender_config={'hidden_sise':8}",
    "--model=BIGRec --llm_path=/absent/llm",
    "--model=SOFT --sd_file=absent.jsonl",
    "--model=BIGRec --coreset_file=absent.csv",
    "--model=GORACS --coreset_encoder=/absent/encoder",
    "--model=BIGRec --llm_path=several/levels/deep",
    "--model=BIGRec --llm_path=a?",
    "--model=iLoRA --recommender=Caser",
    "--model=LLaRA --recommender=Pop",
    "--model=BIGRec --coreset=dealrec --recommender=Pop",
    "--model=BIGRec --coreset=dealrec --recommender=GRU4Rec",
    "--model=LLaRA --recommender_config={'eval_args':{'mode':'full'}}",
    "--model=iLoRA --ilora_permuted=True --epochs=0",
    "--model=BIGRec --eval_args={'order':'RO'}",
    "--model=Pop,SASRec --SASRec.eval_args={'split':{'RS':[0.8,0.1,0.1]}}",
    "--model=Pop,SASRec --SASRec.test_sample_size=3",
    "--model=BIGRec --faiss_index=IVF8,Flat --faiss_search=nprobe",
    "--model=BIGRec --adapter=full --quant=8bit --llm_path=some/llm",
    "--model=BIGRec --quant=4bit --llm_path=some/llm --use_gpu=False",
    "--model=S3Rec --train_stage=fine",
    "--model=S3Rec --train_stage=finetune",
    "--model=S3Rec --train_stage=finetune --pre_model_path=absent.pth",
    "--model=KSR",
    "--model=Pop --benchmark_filename=[train,valid]",
    "--model=Pop --benchmark_filename=[train,valid,test]",
    "--model=Pop --benchmark_filename=[train,valid,test] --windows=full",
    "--model=Pop,SASRec --category_field=clas",
    "--model=Pop --checkpoint_dir=setup.py/saved",
]

# Of the data files, of several models, or of the words themselves: a config does not look there.
NOT_OF_A_CONFIG = (
    *("_field=", "FIELD=", "load_col", "domain=", "Pop,FM", "Pop --epochs", "dataset=nowhere"),
    *("SASRec,LLaRA", "LLaRA,SASRec", "/absent/", "_file=", "threshold="),
    *("llm_path=several", "llm_path=a?", "SASRec.", "quant=4bit", "train_stage=", "benchmark_filename=", "KSR"),
    "checkpoint_dir=",
)


def words(line: str) -> list[str]:
    given = line.split(" ")
    return given if any(word.startswith("--dataset") for word in given) else [*given, "--dataset=ml-100k"]


def test_help_and_refused_commands_import_nothing_heavy():
    code = f"""
import sys
from recbole_llm.experiment.command import main
statuses = [main(["--help"]), main(["--help", "lora"])] + [main(words) for words in {[words(line) for line in REFUSED]}]
heavy = {{"torch", "recbole", "transformers", "peft", "pandas", "scipy", "sklearn", "faiss", "matplotlib"}}
print(statuses, sorted(heavy & set(sys.modules)))
"""
    last = fresh_python(code=code).stdout.splitlines()[-1]
    assert last == f"{[0, 0] + [2] * len(REFUSED)} []"


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_lightly_is_refused_by_the_config_in_the_same_words(line):
    with pytest.raises(InputError) as refused:
        check_command(parse_command(words(line)))
    if any(part in line for part in NOT_OF_A_CONFIG):
        return
    command = parse_command(words(line))
    with pytest.raises(InputError) as again:
        for model in command.models:
            Config(model, command.dataset, settings=settings_for(model, command))
    assert str(again.value) == str(refused.value)


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
    from recbole.evaluator import metric_types, metrics_dict

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
    ("line", "message"),
    [
        (
            "--model=Pop,SASRec,BIGRec --BIGRec.load_col={'inter':['user_id','item_id','timestamp','nope']}",
            "load_col: ml-100k.inter has no column 'nope', it has user_id, item_id, rating, timestamp",
        ),
        (
            "--model=BIGRec --load_col={'inter':['user_id','item_id','timestamp'],'item':['item_id']}",
            "title_field: item field 'movie_title' exists in ml-100k.item but load_col does not load it; add it",
        ),
        ("--model=BIGRec --title_field=name", "title_field: data set 'ml-100k' has no item field 'name'"),
        ("--model=Pop,BIGRec --BIGRec.item_text_fields=[klass]", "item_text_fields: data set 'ml-100k' has no item f"),
    ],
)
def test_columns_are_checked_for_all_models_against_the_headers(line, message):
    with pytest.raises(InputError) as refused:
        check_command(parse_command(words(line)))
    assert message in str(refused.value)


def test_help_about_a_word(capsys):
    from recbole_llm.experiment.command import main

    assert main(["--help", "beams"]) == 0
    out = capsys.readouterr().out
    assert "--num_beams (int; default 4; LLM models)\n    Beams of the search, >= 1." in out and "lora_r" not in out
    assert main(["--help=damping"]) == 0
    assert "--influence_damping" in capsys.readouterr().out
    assert main(["--help", "bems"]) == 0
    assert "No setting's name or meaning holds 'bems'" in capsys.readouterr().out
