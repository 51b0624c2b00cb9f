"""Durations of a run's stages, kept in its folder so that a later command can estimate its time."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from recbole_llm.disk import write_json
from recbole_llm.distributed import launched
from recbole_llm.experiment.run_folder import folder_stem
from recbole_llm.registry import load_class
from recbole_llm.settings.config import NO_EFFECT, Config
from recbole_llm.stages import fingerprint
from recbole_llm.timeline import EVALUATE, PREPARE, TRAIN, RunPlan
from recbole_llm.trainer.llm_trainer import LLMTrainer

FILE = "timing.json"
MOST_FOLDERS = 50  # that are looked into, the newest ones
log = logging.getLogger(__name__)


def run_stages(config: Config) -> list[str]:
    """Names of the stages of a run, in their order; those between the first and the last are the trainer's.

    Args:
        config: the resolved config.
    """
    if not config.is_llm:
        return [PREPARE, TRAIN, EVALUATE]
    trainer = cast(type[LLMTrainer], load_class(config.model_class.trainer))
    return [PREPARE, *trainer.stage_names(config), EVALUATE]


def plan_of(config: Config, label: str, few_shot: bool) -> RunPlan:
    """The stages of a run, and what they took when one with the same settings was made.

    Args:
        config: the resolved config.
        label: the model's name in the table.
        few_shot: whether ``train_sample_size`` applies.
    """
    like, known = _kind(config, few_shot), dict[str, float]()
    stem = folder_stem(f"{label}-{config['dataset']}")
    files = sorted(Path(config["checkpoint_dir"]).glob(f"{stem}-*/{FILE}"), key=lambda file: file.parent.name)
    for file in files[-MOST_FOLDERS:]:
        known |= _read(file, like)
    return RunPlan(label, run_stages(config), known)


def write_timing(folder: Path, config: Config, few_shot: bool, seconds: Mapping[str, float]) -> None:
    """Keep what the stages of a run took.

    Args:
        folder: folder of the run.
        config: the resolved config.
        few_shot: whether ``train_sample_size`` applies.
        seconds: by stage, of those that were done as a whole.
    """
    rounded = {stage: round(value, 3) for stage, value in seconds.items()}
    write_json(folder / FILE, {"like": _kind(config, few_shot), "seconds": rounded})


def _kind(config: Config, few_shot: bool) -> str:
    """What tells runs of other lengths apart: settings but the seed, device, and number of processes."""
    settings = {key: value for key, value in config.to_dict().items() if key not in NO_EFFECT | {"seed"}}
    device = str(config["device"]).partition(":")[0]
    return fingerprint({"settings": settings, "few_shot": few_shot, "device": device, "processes": launched().count})


def _read(file: Path, like: str) -> dict[str, float]:
    """Seconds by stage of a run of this kind; none of another, and none of a file that cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(stage): float(value) for stage, value in found["seconds"].items()} if found["like"] == like else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.debug("%s tells no times: %s", file, error)
        return {}
