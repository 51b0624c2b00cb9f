"""Planted faults, each found by its own check, and a clean data set on which nothing warns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_llm.experiment import audit
from recbole_llm.experiment.audit_command import main, parse
from recbole_llm.experiment.command import main as command
from tests.refusals import refused
from tests.runs import working_in

N_USERS, N_ITEMS = 150, 60


class Data:
    """A data set before it is written: each user's items in the order of time, and what is known of the items."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.users = {
            f"u{user}": [f"i{item}" for item in rng.permutation(N_ITEMS)[: rng.integers(6, 9)]]
            for user in range(N_USERS)
        }
        self.titles = {f"i{item}": f"Title number {item}" for item in range(N_ITEMS)}
        self.classes = {item: f"kind{place % 4}" for place, item in enumerate(self.titles)}
        self.again: list[int] = []  # lines that are written twice
        self.settings: dict[str, Any] = {}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        lines = [
            f"{user}\t{item}\t{1000 + 10 * place + 100_000 * number}"
            for number, (user, items) in enumerate(self.users.items())
            for place, item in enumerate(items)
        ]
        lines += [lines[place] for place in self.again]
        self._file(folder / f"{folder.name}.inter", "user_id:token\titem_id:token\ttimestamp:float", lines)
        about = [f"{item}\t{title}\t{self.classes[item]}" for item, title in self.titles.items()]
        self._file(folder / f"{folder.name}.item", "item_id:token\ttitle:token_seq\tclass:token_seq", about)

    @staticmethod
    def _file(path: Path, header: str, lines: list[str]) -> None:
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def repeat_lines(data: Data) -> None:
    data.again = [3, 40]


def copy_users(data: Data) -> None:
    data.users["twin"] = list(data.users["u3"])


def share_titles(data: Data) -> None:
    data.titles["i2"] = data.titles["i9"]


def share_everything(data: Data) -> None:
    data.titles["i2"], data.classes["i2"] = data.titles["i9"], data.classes["i9"]


def blank_titles(data: Data) -> None:
    data.titles |= {"i4": "", "i5": ""}


def repeat_last_items(data: Data) -> None:
    for user in list(data.users)[:10]:
        data.users[user].append(data.users[user][-1])


def end_with_new_items(data: Data) -> None:
    for number, user in enumerate(list(data.users)[:5]):
        data.users[user].append(f"new{number}")
        data.titles[f"new{number}"], data.classes[f"new{number}"] = f"A new title {number}", "kind0"


def let_five_items_rule(data: Data) -> None:
    for number, user in enumerate(data.users):
        kept = [item for item in data.users[user] if item not in {f"i{i}" for i in range(5)}]
        data.users[user] = [kept[0], f"i{number % 5}", *kept[1:], f"i{(number + 1) % 5}"]


def shorten_prompts(data: Data) -> None:
    data.settings["max_prompt_tokens"] = 230


def end_as_others_go_on(data: Data) -> None:
    data.settings["MAX_ITEM_LIST_LENGTH"] = 1
    for items in data.users.values():
        items += ["i1", "i2"] if items[0] > "i3" else ["i1", "i2", "i3", "i4"]


FAULTS = {
    "duplicate interactions": repeat_lines,
    "duplicate users": copy_users,
    "duplicate titles": share_titles,
    "duplicate items": share_everything,
    "untitled items": blank_titles,
    "target in history, test": repeat_last_items,
    "cold targets, test": end_with_new_items,
    "popularity, test": let_five_items_rule,
    "truncated prompts": shorten_prompts,
    "equal prompts, test": end_as_others_go_on,
}


@pytest.fixture
def audited(tmp_path, llama, capsys):
    """What the command finds in a data set: the checks that warn, and all of them."""

    def run(data: Data) -> tuple[set[str], dict[str, Any]]:
        data.write(tmp_path / "mine")
        settings = {
            "item_text_fields": "[class]",
            "title_field": "title",
            "llm_path": str(llama),
            "show_progress": False,
        }
        columns = "{inter: [user_id, item_id, timestamp], item: [item_id, title, class]}"
        words = [f"--{key}={value}" for key, value in {**settings, "load_col": columns, **data.settings}.items()]
        with working_in(tmp_path):
            assert command(["audit", "--dataset=mine", f"--data_path={tmp_path}", *words]) == 0
            (file,) = Path("saved").glob("audit-mine-*/audit.json")
            found = {finding["check"]: finding for finding in json.loads(file.read_text(encoding="utf-8"))}
        assert f"{sum(one['warns'] for one in found.values())} of {len(found)} checks warn" in capsys.readouterr().out
        return {name for name, one in found.items() if one["warns"]}, found

    return run


def test_nothing_warns_on_clean_data(audited):
    warned, found = audited(Data())
    assert not warned
    assert set(FAULTS) < set(found)
    assert found["sequences known"]["total"] == N_USERS and found["titles known"]["total"] == N_ITEMS


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(audited, fault, monkeypatch):
    monkeypatch.setattr(audit, "N_PROBED", 4)  # what the LLM knows is no fault of these
    data = Data()
    FAULTS[fault](data)
    warned, found = audited(data)
    assert fault in warned, found[fault]
    assert found[fault]["count"] > 0


def test_wrong_words_are_refused():
    assert parse(["--dataset=ml-100k"]).models == ["BIGRec"]
    with refused("model", "conflict"):
        parse(["--dataset=ml-100k", "--model=BIGRec,LLaRA"])
    with refused("model", "conflict"):
        main(["--dataset=ml-100k", "--model=Pop"])
