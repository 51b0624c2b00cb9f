"""RecBole's checkpoints, read through an allow-list: no code is run, only tensors and plain data are built."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from types import SimpleNamespace
from typing import Any

import torch

from recbole_llm.errors import InputError


class Inert:
    """Stands for an object of a checkpoint that is not rebuilt: it keeps its state and does nothing.

    For RecBole's ``Config`` that is enough to be read: ``checkpoint["config"]["model"]``.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, key: str) -> Any:
        return self.state["final_config_dict"].get(key)


# Rebuilt as they are: what tensors, arrays and plain containers are made of. None of these runs code of the file's
# choice (torch.storage._load_from_bytes, which would unpickle again without a list, is missing on purpose).
REBUILT = frozenset(
    f"{module}.{name}"
    for modules, names in (
        ("builtins __builtin__", "bytearray complex dict float frozenset int list set slice str tuple"),
        ("collections", "Counter OrderedDict defaultdict"),
        ("_codecs", "encode"),
        ("torch", "Size Tensor device"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.serialization", "_get_layout"),
        ("torch.storage", "TypedStorage UntypedStorage"),
        ("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_parameter _rebuild_sparse_tensor"),
        ("numpy", "dtype matrix ndarray"),
        ("numpy.core.multiarray numpy._core.multiarray", "_reconstruct scalar"),
        ("numpy.core.numeric numpy._core.numeric", "_frombuffer"),
        ("scipy.sparse._coo", "coo_array coo_matrix"),
        ("scipy.sparse._csc", "csc_array csc_matrix"),
        ("scipy.sparse._csr", "csr_array csr_matrix"),
        ("scipy.sparse._lil", "lil_array lil_matrix"),
    )
    for module in modules.split()
    for name in names.split()
)
# Never rebuilt, not even imported: Config with all that hangs on it, and the layers that some models store whole,
# data set included, although their weights are in the state dict.
INERT_PACKAGES = ("recbole.", "recbole_llm.", "logging.", "pandas.", "pathlib.", "torch.nn.modules.", "yaml.")


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.".startswith(INERT_PACKAGES) or _is_recommender(module, name):
            return Inert
        if f"{module}.{name}" in REBUILT or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which a checkpoint has no need of")


def _is_recommender(module: str, name: str) -> bool:
    """Whether this is an already imported model of a third party, which ``Config`` names as its model class."""
    from recbole.model.abstract_recommender import AbstractRecommender

    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, AbstractRecommender)


def load_checkpoint(path: str | os.PathLike[str], map_location: str | torch.device | None = None) -> dict[str, Any]:
    """Reads a checkpoint that RecBole's trainers wrote, without running anything that the file might hold.

    Args:
        path: a ``.pth`` file.
        map_location: as for ``torch.load``: where the tensors go.

    Returns:
        RecBole's dictionary. Tensors, arrays and sparse matrices are themselves; ``config`` is an :class:`Inert` that
        answers ``[...]``; entries of ``other_parameter`` that are whole layers are left out, since ``state_dict`` has
        their weights.

    Raises:
        InputError: no such file, not a checkpoint, or one that asks for a class outside the list.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise InputError(f"{path!r}: no such checkpoint; give the path of a .pth file that RecBole saved", kind="file")
    if not zipfile.is_zipfile(path) or _is_torchscript(path):
        raise InputError(
            f"{path}: not a checkpoint that RecBole saved, or an incomplete one; train the model again", kind="file"
        )
    allow_list = SimpleNamespace(__name__=__name__, Unpickler=_AllowListUnpickler)
    try:
        checkpoint = torch.load(path, map_location=map_location, pickle_module=allow_list, weights_only=False)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not loaded, the file {error}; use checkpoints from a source you trust", kind="file"
        ) from error
    if not isinstance(checkpoint, dict):
        raise InputError(
            f"{path}: holds a {type(checkpoint).__name__}, not the dictionary of a checkpoint", kind="file"
        )
    if "other_parameter" in checkpoint:
        others = checkpoint["other_parameter"].items()
        checkpoint["other_parameter"] = {key: value for key, value in others if not isinstance(value, Inert)}
    return checkpoint


def _is_torchscript(path: str) -> bool:
    """Such an archive is a program, which ``torch.load`` would hand to ``torch.jit``."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
