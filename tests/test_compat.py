"""The patches of RecBole: each works, is still needed on the stack it is for, and runs nothing from a checkpoint."""

from __future__ import annotations

import io
import os
import pickle
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from recbole_llm import compat, recbole_checkpoints
from recbole_llm.recbole_checkpoints import Inert, load_checkpoint
from tests.processes import Done, forked_python
from tests.refusals import refused
from tests.worlds import make_world, side_file_settings

REPOSITORY = Path(__file__).parents[1]


def train(model_name: str, world: Path, **settings: Any) -> tuple[Any, Any]:
    """One epoch of a model by RecBole's own classes; returns the trainer and the test rows."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    settings = {
        "data_path": str(world.parent),
        "checkpoint_dir": tempfile.mkdtemp(dir=world.parent),  # RecBole names a checkpoint by the second
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "repeatable": True,
        "metrics": ["NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
        "epochs": 1,
        "device": "cpu",
        "use_gpu": False,
        "state": "ERROR",
        **side_file_settings(model_name),
        **settings,
    }
    argv, sys.argv = sys.argv, sys.argv[:1]  # RecBole's Config would read pytest's own arguments
    try:
        config = Config(model=model_name, dataset=world.name, config_dict=settings)
    finally:
        sys.argv = argv
    init_seed(config["seed"], reproducibility=True)
    train_rows, valid_rows, test_rows = data_preparation(config, create_dataset(config))
    model = get_model(model_name)(config, train_rows.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], model_name)(config, model)
    trainer.fit(train_rows, valid_rows, verbose=False)
    return trainer, test_rows


CE = {"train_neg_sample_args": None}
MODELS = {
    "BPR": {},
    "EASE": {},
    "GCMC": {},
    "ItemKNN": {},
    "LightGCN": {},
    "NCL": {"num_clusters": 5},
    "NGCF": {},
    "Pop": {},
    "SpectralCF": {},
    "FDSA": CE,
    "KSR": CE,
    "SASRec": CE,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module", autouse=True)
def applied() -> None:
    compat.apply()


# The others are patched as these are, or train without patches; FDSA is built in a second.
FAST = ("BPR", "EASE", "LightGCN", "NCL", "SASRec")


@pytest.mark.parametrize(
    "model_name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_a_fresh_model_with_the_checkpoint_scores_as_the_trained_one(model_name: str, world: Path) -> None:
    trainer, test_rows = train(model_name, world, **MODELS[model_name])
    trained = trainer.evaluate(test_rows, load_best_model=False)

    other, _ = train(model_name, world, seed=1, **MODELS[model_name])
    assert other.evaluate(test_rows, model_file=trainer.saved_model_file) == trained


def test_s3rec_finetunes_its_own_pretrained_model(world: Path) -> None:
    pretrained, _ = train("S3Rec", world, train_stage="pretrain", pretrain_epochs=1, save_step=1, **CE)
    path = pretrained.saved_model_file
    finetuned, test_rows = train("S3Rec", world, train_stage="finetune", pre_model_path=path, epochs=0, **CE)

    for name, weight in finetuned.model.state_dict().items():
        assert torch.equal(weight, pretrained.model.state_dict()[name])


def run_without(patch: str, model_name: str, world: Path, strict: bool = False) -> Done:
    """Trains and reloads a model in a new process that does all patches but one.

    `strict`: a FutureWarning of RecBole's data set is an error.
    """
    code = (
        "import warnings\n"
        f"if {strict}: warnings.filterwarnings('error', '', FutureWarning, 'recbole.data.dataset.dataset')\n"
        "from recbole_llm import compat\n"
        f"compat.{patch} = lambda: None\n"
        "compat.apply()\n"
        "from pathlib import Path\n"
        "from tests.test_compat import MODELS, train\n"
        f"trainer, rows = train({model_name!r}, Path({str(world)!r}), **MODELS[{model_name!r}])\n"
        "trainer.evaluate(rows)\n"
        "import sys\n"
        "assert not {'ray', 'recbole.quick_start'} & set(sys.modules)\n"
    )
    return forked_python(code, status=None)


def version(module: Any) -> tuple[int, int]:
    major, minor = module.__version__.split(".")[:2]
    return int(major), int(minor)


NEEDED = [
    # patch, the stack that needs it, a model that breaks without it, what the error says
    ("restore_numpy_names", version(np) >= (2, 0), "BPR", "np.float_"),
    ("read_checkpoints_by_allow_list", version(torch) >= (2, 6), "BPR", "weights_only"),
    ("restore_dok_update", version(scipy) >= (1, 13), "LightGCN", "_update"),
    ("read_ksr_vectors_in_single_precision", True, "KSR", "dtype"),
    ("silence_deprecations", version(pd) >= (2, 2), "BPR", "FutureWarning"),
]


@pytest.mark.parametrize(("patch", "needed_here", "model_name", "message"), NEEDED, ids=[row[0] for row in NEEDED])
def test_recbole_still_breaks_without(
    patch: str, needed_here: bool, model_name: str, message: str, world: Path
) -> None:
    if not needed_here:
        pytest.skip("this stack does not need the patch")
    done = run_without(patch, model_name, world, strict=patch == "silence_deprecations")
    assert done.status != 0, f"RecBole runs without {patch}: remove it"
    assert message in done.stderr[-2000:]


def test_all_mends_together_raise_no_warning_and_need_no_ray(world: Path) -> None:
    done = run_without("no_such_mend", "BPR", world, strict=True)
    assert done.status == 0, done.stderr


def test_autograd_searches_gradients_for_nan_only_if_told_to() -> None:
    from recbole.model.sequential_recommender import sine

    assert not torch.is_anomaly_enabled()
    try:
        runpy.run_path(sine.__file__)
        assert torch.is_anomaly_enabled(), "SINE leaves the mode alone: remove leave_anomaly_mode_alone"
    finally:
        torch.autograd.set_detect_anomaly(False)


def test_pop_still_counts_an_item_once_per_batch_and_ours_counts_interactions() -> None:
    code = """if True:
        import sys, torch
        from types import SimpleNamespace
        from recbole.model.general_recommender.pop import Pop
        if sys.argv[1:]:
            from recbole_llm import compat
            compat.count_every_interaction_in_pop()
        pop = SimpleNamespace(ITEM_ID="item", item_cnt=torch.zeros(4, 1, dtype=torch.long), device="cpu")
        for batch in ([1, 1, 1, 2], [1, 3]):
            Pop.calculate_loss(pop, {"item": torch.tensor(batch)})
        print(pop.item_cnt.flatten().tolist(), pop.max_cnt.tolist())
    """
    plain, patched = (forked_python(code, *words) for words in ([], ["patched"]))
    assert plain.stdout.strip() == "[0, 2, 1, 1] [2]"
    assert patched.stdout.strip() == "[0, 4, 1, 1] [4]"


def test_pandas_3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd, "__version__", "3.0.1")
    with refused("", "environment", r"pandas 3\.0\.1 .*pip install 'pandas<3'"):
        compat.apply()


def test_applying_twice_changes_nothing_and_other_packages_keep_theirs() -> None:
    from recbole.model.general_recommender import lightgcn
    from recbole.trainer import trainer

    before = trainer.torch, lightgcn.sp, np.float, np.unicode
    compat.apply()

    assert all(old is new for old, new in zip(before, (trainer.torch, lightgcn.sp, np.float, np.unicode), strict=True))
    assert trainer.torch.load is load_checkpoint
    assert trainer.torch.Tensor is torch.Tensor
    assert torch.load.__module__ == "torch.serialization"
    assert hasattr(scipy.sparse.dok_matrix, "_update") == (version(scipy) < (1, 13))


def test_a_checkpoint_yields_what_was_saved(world: Path) -> None:
    trainer, _ = train("SASRec", world, **CE)
    path = trainer.saved_model_file

    checkpoint = load_checkpoint(path, map_location="cpu")

    saved = torch.load(path, weights_only=False)
    assert checkpoint.keys() == saved.keys()
    assert all(torch.equal(checkpoint["state_dict"][name], weight) for name, weight in saved["state_dict"].items())
    assert checkpoint["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    for index, state in saved["optimizer"]["state"].items():
        assert all(torch.equal(checkpoint["optimizer"]["state"][index][key], value) for key, value in state.items())
    assert (checkpoint["epoch"], checkpoint["best_valid_score"]) == (saved["epoch"], saved["best_valid_score"])
    assert isinstance(checkpoint["config"], Inert)
    assert checkpoint["config"]["model"] == "SASRec"
    assert checkpoint["config"]["no such key"] is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_and_containers_are_rebuilt(protocol: int, tmp_path: Path) -> None:
    values = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "objects": np.array([None, "title"], dtype=object),
        "scalar": np.float64(0.25),
        "matrix": np.matrix([[1.0, 2.0]]),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "sets": [{1, 2}, frozenset("a")],  # one string: the order in which several print differs between processes
        "counter": Counter("aab"),
        "bytes": b"\x00\xff",
    }
    sparse = scipy.sparse.csr_matrix(np.eye(3))
    torch.save({"values": values, "sparse": sparse}, tmp_path / "values.pth", pickle_protocol=protocol)

    checkpoint = load_checkpoint(tmp_path / "values.pth")

    assert repr(checkpoint["values"]) == repr(values)
    assert (checkpoint["sparse"] != sparse).nnz == 0


def test_training_resumes(world: Path) -> None:
    trainer, _ = train("SASRec", world, **CE)
    other, _ = train("SASRec", world, seed=1, **CE)

    other.resume_checkpoint(trainer.saved_model_file)

    assert other.start_epoch == 1
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name])


class Call:
    """Pickles as a call: what a planted object does to make the reader run its code."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def nested(command: str, folder: Path) -> Call:
    """The same behind torch's own function that unpickles bytes."""
    torch.save(Call(os.system, command), folder / "inner.pth")
    return Call(torch.storage._load_from_bytes, (folder / "inner.pth").read_bytes())


PLANTED = {
    "system": (lambda command, folder: Call(os.system, command), r"\.system"),
    "eval": (
        lambda command, folder: Call(eval, f"__import__('os').system({command!r})"),
        r"_*builtins?_*\.eval",
    ),
    "nested": (nested, r"torch\.storage\._load_from_bytes"),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_planted_call_is_refused_by_name(kind: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    plant, name = PLANTED[kind]
    state = {"state_dict": {"weight": torch.ones(2)}, "config": {"deep": [plant(f"touch {marker}", tmp_path)]}}
    torch.save(state, tmp_path / "planted.pth", pickle_protocol=protocol)

    with refused("", "file", rf"planted\.pth: not loaded, the file asks for \S*{name}"):
        load_checkpoint(tmp_path / "planted.pth")
    assert not marker.exists()


def test_a_call_through_a_package_that_is_kept_inert_does_not_run(tmp_path: Path) -> None:
    """Names may have dots: ``recbole.utils.utils`` imports ``os``, so ``os.system`` can be reached through it."""
    marker = tmp_path / "ran"
    pickled = b"crecbole.utils.utils\nos.system\n(V" + f"touch {marker}".encode() + b"\ntR."

    loaded = recbole_checkpoints._AllowListUnpickler(io.BytesIO(pickled)).load()

    assert isinstance(loaded, Inert)
    assert not marker.exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    planted = Call(os.system, f"touch {marker}")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(planted))
    torch.save(planted, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "program.pth"))
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    for name in ("missing.pth", "plain.pth", "legacy.pth", "program.pth", "tensor.pth"):
        with refused("", "file", name):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_a_third_party_model_in_the_configuration_is_no_obstacle(tmp_path: Path) -> None:
    from recbole.model.general_recommender import BPR

    global ThirdPartyModel
    ThirdPartyModel = type("ThirdPartyModel", (BPR,), {"__module__": __name__})
    torch.save({"config": {"model_class": ThirdPartyModel, "device": torch.device("cpu")}}, tmp_path / "own.pth")

    config = load_checkpoint(tmp_path / "own.pth")["config"]

    assert config == {"model_class": Inert, "device": torch.device("cpu")}


def test_a_missing_wandb_is_one_line(monkeypatch):
    from recbole.utils import wandblogger

    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with refused("log_wandb", "environment", "log_wandb: it needs the package wandb: pip install wandb"):
        wandblogger.WandbLogger(SimpleNamespace(log_wandb=True))


def test_lora_and_gradient_checkpointing_raise_no_warning() -> None:
    """peft and this package ask transformers for what it will rename; the user has nothing to do about it."""
    done = forked_python(
        "from recbole_llm import compat\n"
        "compat.apply()\n"
        "from peft import LoraConfig, get_peft_model\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "sizes = {'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1}\n"
        "model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))\n"
        "model.gradient_checkpointing_enable({'use_reentrant': False})\n"
        "get_peft_model(model, LoraConfig(target_modules=['q_proj']))\n"
    )
    assert "FutureWarning" not in done.stderr
