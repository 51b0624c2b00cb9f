"""Singular values of an LLM's layers, which ranks may go by, as a stage that all runs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm.adapter.ranks import Spectra
from recbole_llm.llm.backbone import Backbone
from recbole_llm.model.backbones import weight_facts
from recbole_llm.settings.config import Config
from recbole_llm.stages import Stage

VALUES = "spectra.npz"


class SpectraStage(Stage[Spectra]):
    """Singular values by the name of the layer.

    Args:
        backbone: the LLM.
        config: the resolved config.
        names: names of the layers.
        compute: gives their singular values.
    """

    name = "spectra"

    def __init__(
        self, backbone: Backbone, config: Config, names: Sequence[str], compute: Callable[[], Spectra]
    ) -> None:
        self._backbone, self._config, self._names, self._compute = backbone, config, list(names), compute

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"llm": self._backbone.fingerprint, **weight_facts(self._config), "layers": self._names}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        np.savez(folder / VALUES, **dict(self._compute()))

    def load(self, folder: Path) -> Spectra:
        """See :class:`Stage`."""
        with np.load(folder / VALUES) as values:
            return {name: values[name] for name in self._names}
