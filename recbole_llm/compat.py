"""Patches that let RecBole 1.2.1 run on current versions of its libraries; no other module patches it.

:func:`apply` installs every patch; packages that use RecBole call it on import. Each patch is one function with its
cause and the upstream report, does nothing on a stack that does not need it, and nothing the second time. Patches
reach into RecBole's own modules and classes only: torch, scipy and warnings of other packages stay as they are. (numpy
gets the old names that RecBole's ``Config`` has always given it.)

What cannot be patched is avoided: ``recbole.quick_start`` is the one module that imports ray (``ray<=2.6.3`` needs
``pkg_resources`` and numpy 1, and has no build for Python 3.12; https://github.com/RUCAIBox/RecBole/pull/2078), and
nothing here imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from recbole_llm.distributed import launched
from recbole_llm.errors import InputError
from recbole_llm.lazy import needs_package
from recbole_llm.recbole_checkpoints import load_checkpoint

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.general_recommender.pop import Pop
    from recbole.utils.wandblogger import WandbLogger

# RecBole's modules that call torch.load, and those that call dok_matrix._update.
CHECKPOINT_READERS = (
    "recbole.trainer.trainer",
    "recbole.model.sequential_recommender.s3rec",
    "recbole.model.general_recommender.convncf",
    "recbole.model.general_recommender.nais",
    "recbole.model.general_recommender.neumf",
    "recbole.model.general_recommender.ract",
    "recbole.model.context_aware_recommender.kd_dagfm",
)
DOK_UPDATERS = (
    "recbole.model.general_recommender.gcmc",
    "recbole.model.general_recommender.lightgcn",
    "recbole.model.general_recommender.ncl",
    "recbole.model.general_recommender.ngcf",
    "recbole.model.general_recommender.spectralcf",
    "recbole.model.knowledge_aware_recommender.kgin",
    "recbole.model.knowledge_aware_recommender.mcclk",
)


def apply() -> None:
    """Makes RecBole usable on this stack; cheap to call again.

    Raises:
        InputError: pandas 3 or later is installed.
    """
    refuse_pandas_3()
    restore_numpy_names()
    leave_anomaly_mode_alone()
    read_checkpoints_by_allow_list()
    restore_dok_update()
    read_ksr_vectors_in_single_precision()
    count_every_interaction_in_pop()
    name_missing_wandb()
    write_scalars_into_the_run_folder()
    silence_deprecations()


def refuse_pandas_3() -> None:
    """RecBole does not work on pandas 3, and partly without saying so.

    Strings are no longer objects there, which breaks every ``token_seq`` column, and ``fillna(inplace=True)`` on a
    column fills a copy, so that missing values stay. No upstream report known.

    Raises:
        InputError: pandas 3 or later is installed.
    """
    if int(pd.__version__.split(".")[0]) >= 3:
        raise InputError(
            f"pandas {pd.__version__} breaks RecBole 1.2.1: install an older one, pip install 'pandas<3'",
            kind="environment",
        )


def restore_numpy_names() -> None:
    """``Config.compatibility_settings`` reads ``np.float_``, ``np.complex_``, ``np.unicode_``, gone with numpy 2.

    It does so to give numpy back the names of numpy 1.19 (``np.float``, ``np.long``, ...), which RecBole's metrics,
    layers and data use: https://github.com/RUCAIBox/RecBole/pull/2203 and, for the names themselves,
    https://github.com/RUCAIBox/RecBole/pull/1621. The replacement gives the same names by today's spelling, and at
    once, so that RecBole's data classes work before the first ``Config`` too.
    """
    from recbole.config import Config

    Config.compatibility_settings = _give_old_numpy_names
    _give_old_numpy_names()


def _give_old_numpy_names(config: object = None) -> None:
    names = {"bool": np.bool_, "int": np.int_, "long": np.int_, "float": np.float64, "complex": np.complex128}
    for name, kind in {**names, "object": np.object_, "str": np.str_, "unicode": np.str_}.items():
        setattr(np, name, kind)


def leave_anomaly_mode_alone() -> None:
    """Importing SINE, which comes with any sequential model, turns on autograd's anomaly mode for the whole process.

    Every backward pass of every model then searches each gradient for NaN and keeps a Python stack per operation: a
    third of SASRec's training time. Nothing is computed differently, and RecBole's trainer checks the loss for NaN
    anyway. No upstream report known.
    """
    if "recbole.model.sequential_recommender.sine" not in sys.modules:
        chosen = torch.is_anomaly_enabled()
        importlib.import_module("recbole.model.sequential_recommender.sine")
        torch.autograd.set_detect_anomaly(chosen)


def read_checkpoints_by_allow_list() -> None:
    """``torch.load`` reads weights only since torch 2.6, and RecBole's checkpoints hold its ``Config`` (protocol 4).

    So the best epoch is never reloaded, nor a pre-trained model: https://github.com/RUCAIBox/RecBole/pull/2155,
    https://github.com/RUCAIBox/RecBole/issues/2212. RecBole's modules get a view of torch whose ``load`` is
    :func:`recbole_llm.recbole_checkpoints.load_checkpoint`.
    """
    for name in CHECKPOINT_READERS:
        _replace_in(importlib.import_module(name), "torch", load=load_checkpoint)


def restore_dok_update() -> None:
    """``dok_matrix`` lost the method ``_update`` in scipy 1.13, with which the graph models fill their adjacency.

    https://github.com/RUCAIBox/RecBole/issues/2034. The modules of these models get a view of ``scipy.sparse`` whose
    ``dok_matrix`` has it.
    """
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        for name in DOK_UPDATERS:
            _replace_in(importlib.import_module(name), "sp", dok_matrix=_UpdatableDokMatrix)


class _UpdatableDokMatrix(scipy.sparse.dok_matrix):
    def _update(self, entries: dict[tuple[int, int], float]) -> None:
        """Sets many entries without the check of each index that makes item assignment slow."""
        self._dict.update(entries)


def read_ksr_vectors_in_single_precision() -> None:
    """KSR multiplies its float32 states by float64 relation vectors, which no version of torch allows.

    RecBole reads pre-trained vectors into float64; the other models copy them into float32 weights first. No upstream
    report known.
    """
    from recbole.data.dataset import Dataset, KSRDataset

    def get_preload_weight(self: Dataset, field: str) -> np.ndarray:
        vectors: np.ndarray = Dataset.get_preload_weight(self, field)
        return vectors.astype(np.float32)

    KSRDataset.get_preload_weight = get_preload_weight


def count_every_interaction_in_pop() -> None:
    """Pop adds 1 to an item per batch, however often the batch has it, so popular items tie at the number of batches.

    https://github.com/RUCAIBox/RecBole/issues/2198, https://github.com/RUCAIBox/RecBole/issues/1844. A baseline that
    depends on ``train_batch_size`` is none.
    """
    from recbole.model.general_recommender.pop import Pop

    Pop.calculate_loss = _count_interactions


def _count_interactions(pop: Pop, interaction: Interaction) -> torch.Tensor:
    items = interaction[pop.ITEM_ID]
    pop.item_cnt.index_add_(0, items, torch.ones_like(items)[:, None])
    pop.max_cnt = pop.item_cnt.max(dim=0).values
    return torch.zeros(1, device=pop.device, requires_grad=True)


def read_atomic_files(dataset: Mapping[str, Callable[..., Any]], knowledge: Mapping[str, Callable[..., Any]]) -> None:
    """Give RecBole's data sets the one reader of atomic files; ``recbole_llm.data`` calls this with its methods.

    RecBole 1.2.1 reads the files as csv with quoting, so that titles with a quote swallow what follows
    (https://github.com/RUCAIBox/RecBole/issues/2017), takes ``NA`` and ``null`` for missing ids, casts times to single
    precision before it sorts by them (https://github.com/RUCAIBox/RecBole/issues/2204,
    https://github.com/RUCAIBox/RecBole/issues/1653), and renumbers items, and drops interactions, by the links of a
    knowledge graph. No release of RecBole ends this.

    Args:
        dataset: methods of ``Dataset``, by name.
        knowledge: methods of ``KnowledgeBasedDataset``, by name.
    """
    from recbole.data.dataset import Dataset, KnowledgeBasedDataset

    for target, methods in ((Dataset, dataset), (KnowledgeBasedDataset, knowledge)):
        for name, method in methods.items():
            setattr(target, name, method)


def name_missing_wandb() -> None:
    """Refuse ``log_wandb`` without wandb installed: RecBole's trainers end in a traceback. No upstream report known."""
    from recbole.utils.wandblogger import WandbLogger

    setup = WandbLogger.setup
    if getattr(setup, "names_missing_package", False):
        return

    def check_and_setup(logger: WandbLogger) -> None:
        if logger.log_wandb and importlib.util.find_spec("wandb") is None:
            raise needs_package("log_wandb", "wandb", "set log_wandb: False")
        setup(logger)

    check_and_setup.names_missing_package = True  # type: ignore[attr-defined]
    WandbLogger.setup = check_and_setup


def write_scalars_into_the_run_folder() -> None:
    """RecBole's trainers write TensorBoard's files into ``log_tensorboard`` in the working folder, whatever runs there.

    Beside the log of a run they go to ``tensorboard/``, those of a second trainer to ``tensorboard-2/``. No upstream
    report known.
    """
    module: Any = importlib.import_module("recbole.trainer.trainer")
    usual = module.get_tensorboard
    if getattr(usual, "knows_run_folders", False):
        return

    def get_tensorboard(logger: logging.Logger) -> Any:
        if not launched().is_main:
            return _Unwritten()
        files = [Path(handler.baseFilename) for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        logs = [file for file in files if file.suffix == ".log"]
        if not logs:
            return usual(logger)
        from torch.utils.tensorboard import SummaryWriter

        names = ("tensorboard" if number == 1 else f"tensorboard-{number}" for number in itertools.count(1))
        return SummaryWriter(next(folder for name in names if not (folder := logs[-1].parent / name).exists()))

    get_tensorboard.knows_run_folders = True  # type: ignore[attr-defined]
    module.get_tensorboard = get_tensorboard


def silence_deprecations() -> None:
    """Warnings of one package about another, which the user can do nothing about.

    RecBole's use of pandas (chained ``fillna``) and torch (``GradScaler``) warns dozens of times a run, and peft's
    use of transformers (``is_gradient_checkpointing``) in every run with LoRA. The pins of this package, and those of
    peft, are what keeps the announced changes away.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning, r"transformers\.")


class _Unwritten:
    """TensorBoard's writer in a process that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _View(ModuleType):
    """A module as one other module sees it, with some of its names replaced."""

    def __init__(self, module: ModuleType, replaced: dict[str, Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["_viewed"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._viewed, name)


def _replace_in(module: ModuleType, name: str, **replaced: object) -> None:
    viewed = getattr(module, name)
    if not isinstance(viewed, _View):
        setattr(module, name, _View(viewed, replaced))
