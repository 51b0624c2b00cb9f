"""A trained model and its rows: trained in this process, or read from a run folder."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from recbole.utils import ModelType, init_seed

from recbole_llm.classic.training import load_classic
from recbole_llm.data.atomic import read_atomic
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.lines import Format, read_header
from recbole_llm.data.numbering import FILE as NUMBERS
from recbole_llm.data.numbering import Numbering, Texts
from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.data.seen_items import SeenItems
from recbole_llm.errors import InputError
from recbole_llm.evaluation import protocol_of
from recbole_llm.evaluation.reranking import Reranking
from recbole_llm.experiment.llm_run import read_llm_run
from recbole_llm.experiment.moved import paths_now
from recbole_llm.experiment.run_folder import reading
from recbole_llm.llm.settings import TINY
from recbole_llm.model.base import LLMRecommender
from recbole_llm.property_files import load_yaml
from recbole_llm.settings.config import Config
from recbole_llm.settings.models import reads_columns

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A model that can be asked.

    Attributes:
        config: the resolved config.
        model: ours or RecBole's, in eval mode.
        rows: the rows of its run.
        reranking: what puts its lists in another order, where the run has one.
    """

    config: Config
    model: Any
    rows: Rows
    reranking: Reranking | None = None

    @cached_property
    def catalog(self) -> ItemCatalog | None:
        """Titles of the items; None where the data have no column ``title_field``."""
        if isinstance(self.model, LLMRecommender):
            return self.model.catalog
        titles = _titles_in_file(self.config, self.rows.whole)
        return ItemCatalog(titles, tokens=self.rows.whole.field2id_token[self.rows.whole.iid_field]) if titles else None

    @cached_property
    def last_row(self) -> np.ndarray:
        """int64 [users], the last row of each user in the data set; -1 for a user without one.

        Of presplit files, whose lines may be in any order, it is the one with the longest history.
        """
        whole = self.rows.whole
        users, order = whole.inter_feat[whole.uid_field].numpy(), np.arange(len(whole.inter_feat))
        if self.config["benchmark_filename"] is not None:
            order = np.argsort(whole.inter_feat[whole.item_list_length_field].numpy(), kind="stable")
        nth = np.full(whole.user_num, -1, dtype=np.int64)
        np.maximum.at(nth, users[order], np.arange(len(users)))
        return np.where(nth < 0, -1, order[nth])

    @cached_property
    def seen(self) -> SeenItems:
        """The items that each user has had, those of validation and test included."""
        return SeenItems.of(self.rows.whole)


def _titles_in_file(config: Config, dataset: Dataset) -> list[str]:
    """The title of every item by RecBole's id, from the ``.item`` file: models without text do not load the column."""
    file = Path(config["data_path"]) / f"{config['dataset']}.item"
    wanted = [config["ITEM_ID_FIELD"], config["title_field"], *([config["title_with"]] if config["title_with"] else [])]
    form = Format.from_config(config)
    if not file.is_file() or not set(wanted) <= set(read_header(file, form)):
        return []
    found = read_atomic(file, form, wanted)
    ids, titles, *more = [[_text(cell) for cell in found.columns[name]] for name in wanted]
    if more:
        titles = [f"{title} ({own})" if title and own else title for title, own in zip(titles, more[0], strict=True)]
    by_id = dict(zip(reversed(ids), reversed(titles), strict=True))  # of several lines for an item the first counts
    known = ["", *(by_id.get(token, "") for token in dataset.field2id_token[dataset.iid_field][1:])]
    return known if any(known) else []


def _text(cell: Any) -> str:
    """A cell of a ``token`` or ``token_seq`` column."""
    return cell if isinstance(cell, str) else " ".join(map(str, cell))


def is_few_shot(config: Config) -> bool:
    """Whether ``train_sample_size`` applies where nothing else is said."""
    return config.is_llm or config["sample_for"] == "all"


def build_llm(config: Config, rows: Rows) -> LLMRecommender:
    """The untuned recommender of a config, on its device."""
    init_seed(config["seed"], config["reproducibility"])
    model: LLMRecommender = config.model_class(config, rows.whole).to(config["device"])
    return model


def config_of(folder: Path, trust_remote_code: bool = False, data_path: str | Path | None = None) -> Config:
    """The config that a run left in its folder.

    Args:
        folder: folder of the run.
        trust_remote_code: whether code that comes with the run's LLM may run, where the run was made with it. The
            folder alone, which somebody else may have written, does not decide that.
        data_path: where the data set lies now, if it has been moved without the run.

    Raises:
        InputError: no run folder, its data are missing, or one that asks for code to be run.
    """
    if not (folder / "config.yaml").is_file():
        runs = (file.parent for around in (folder, folder.parent) for file in sorted(around.glob("*/metrics.json")))
        one = next(runs, None)  # in a folder of runs, or beside a comparison of them
        such = "" if one is None else f", such as {one}"
        raise InputError(
            f"{folder} is not a run folder: it has no config.yaml; give the folder of a finished run{such}", kind="file"
        )
    moved = paths_now(load_yaml(folder / "config.yaml"), folder, data_path)
    config = Config(config_file_list=[folder / "config.yaml"], config_dict=moved or None)
    if config.is_llm and config["trust_remote_code"] and not trust_remote_code:
        raise InputError(
            "trust_remote_code",
            f"the run in {folder} asks to run code that comes with its LLM {config['llm_path']!r}; if you trust it, "
            "load the run with trust_remote_code=True, or give recommend --trust-remote-code",
            kind="conflict",
        )
    return config


def load_trained(folder: Path, config: Config) -> Trained:
    """The model that a run left in its folder.

    Args:
        folder: folder of the run.
        config: :func:`config_of` it.

    Raises:
        InputError: weights or data are missing, or others.
    """
    with reading(folder):
        numbering = Numbering.read(folder)
    if numbering is None:
        log.warning("%s has no %s: whether the data are still those of its training is not checked", folder, NUMBERS)
    config = copy(config)  # another run of these settings gives numbers of its own
    config.numbering = None if numbering is None else numbering.ids
    rows = load_rows(config, is_few_shot(config))
    if numbering is not None:
        _check_data(config, rows, numbering)
    if not config.is_llm:
        with reading(folder):
            return Trained(config, load_classic(config, rows, folder / "model.pth"), rows, Reranking.read(folder))
    model = build_llm(config, rows)
    protocol_of(config).prepare(rows, model)
    model.eval()
    with reading(folder):
        read_llm_run(folder, config, model)
        return Trained(config, model, rows, Reranking.read(folder))


def texts_built_of(config: Config) -> Texts | None:
    """The fields of the texts that a run's LLM is built of; None where its LLM is from elsewhere, or not read later."""
    if not config.is_llm or config["llm_path"] != TINY:
        return None
    if config.model_class.reads_items and not config.model_class.reads_histories:  # its vectors are those of training
        return None
    return config["title_field"], config["title_with"], tuple(config["item_text_fields"] or ())


def _check_data(config: Config, rows: Rows, numbering: Numbering) -> None:
    """Refuse data that a run's weights do not fit, before anything is built for them.

    Raises:
        InputError: users, items, values or interactions that the run did not have.
    """
    users, items = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    if not config.is_llm:
        fields = [items] if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else [users, items]
        numbering.check_known(rows.whole, fields, config["model"])
        may_read = config["rerank"] != "none" or reads_columns(config["model"])
        numbering.check_columns(rows, may_read, config["model"])
        return
    texts = texts_built_of(config)
    if texts is not None and numbering.texts:
        numbering.check_texts(rows.whole, texts)
    if texts is not None or config.model_class.keeps_items(config):
        numbering.check_known(rows.whole, [items], config["model"])
    if config.model_class.borrows(config):
        numbering.check_rows(rows, f"{config['model']} reads a {config['recommender']} trained on them")
