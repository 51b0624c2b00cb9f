"""``recbole-llm import`` and what follows it: words, what it prints, the property file, memory."""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.importers.command import parser
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from recbole_llm.experiment.command import main
from recbole_llm.settings.config import Config
from recbole_llm.settings.values import parse_text
from tests.data.importers.public import atomic, text
from tests.processes import REPOSITORY, fresh_python
from tests.refusals import refused
from tests.runs import working_in


def reviews(folder: Path, n_users: int = 12, n_items: int = 10) -> Path:
    """A table as a shop exports it."""
    draw = random.Random(0)
    lines = ["Customer ID,Product ID,Stars,Date,Product Title"]
    for user in range(n_users):
        for place, item in enumerate(draw.sample(range(n_items), 6)):
            lines.append(f'c{user},p{item},{1 + place % 5},2024-01-{1 + place:02}T10:00:00Z,"Товар: ""{item}"", 商品"')
    return text(folder, "reviews.csv", "\n".join(lines) + "\n")


def test_a_table_becomes_a_data_set_that_runs_by_its_name_alone(tmp_path, capsys):
    reviews(tmp_path)
    with working_in(tmp_path):
        assert main(["--model=Pop", "--dataset=reviews.csv"]) == 2
        said = capsys.readouterr().err
        assert "dataset: 'reviews.csv' is a file, not a data set; make one of it with: " in said
        command = said.partition("make one of it with: ")[2].partition(", then")[0]
        assert command == "recbole-llm import reviews.csv --name=reviews"
        assert main(shlex.split(command)[1:]) == 0
        follows = capsys.readouterr().out.strip().partition("run it with ")[2]
        assert follows == "recbole-llm --model=Pop,SASRec,BIGRec --dataset=reviews"
        small = ["--epochs=1", "--show_progress=False", "--checkpoint_dir=saved"]
        words = [word.replace("Pop,SASRec,BIGRec", "Pop") for word in shlex.split(follows)[1:]]
        assert main([*words, *small]) == 0
    assert "Pop" in capsys.readouterr().out


def test_what_follows_an_import_is_what_can_be_run(tmp_path, capsys):
    """LLMs need titles, and every model a user with three interactions."""
    rows = {"user,item,time": "u,i{n},{n}", "user,item,time,title": "u,i{n},{n},A"}
    for header, row in rows.items():
        for n_items in (2, 3):
            content = "\n".join([header, *(row.format(n=n) for n in range(n_items))])
            text(tmp_path, "mine.csv", content + "\n")
            assert main(["import", str(tmp_path / "mine.csv"), "--name=t", f"--out={tmp_path}", "--overwrite"]) == 0
            models = "Pop,SASRec,BIGRec" if "title" in header else "Pop,SASRec"
            out, err = capsys.readouterr()
            assert ("runs will refuse the data set" in err) == (n_items == 2)
            assert (f"--model={models} --dataset=t" in out) == (n_items == 3) == bool(out.strip())


def test_items_without_interactions_stay_with_a_flag(tmp_path):
    items = text(tmp_path, "items.csv", "item,title\n" + "".join(f"p{n},Title {n}\n" for n in range(12)))
    words = ["import", str(reviews(tmp_path)), "--name=t", f"--out={tmp_path}", f"--items={items}"]
    for flag, n_items in (([], 10), (["--keep-items"], 12), (["--keep_items"], 12)):
        assert main([*words, "--overwrite", *flag]) == 0
        assert len(atomic(tmp_path / "t", "item")[1]) == n_items


@pytest.mark.parametrize(
    ("make", "key", "kind", "words"),
    [
        (
            lambda: Choices(names={"titel": "name"}),
            "names",
            "unknown",
            "a column is none of 'titel'; did you mean title",
        ),
        (lambda: Choices(texts="brand"), "texts", "value", "'brand' is one text; give a tuple of names"),  # type: ignore[arg-type]
        (lambda: Choices(quoting="some"), "quoting", "value", "'some' is not allowed; choose one of auto, csv, none"),
        (lambda: import_dataset(pd.DataFrame(), "t"), "path", "value", "a DataFrame is no path; .* frame.to_csv"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_in_python_are_one_line(make, key, kind, words):
    with refused(key, kind, words):
        make()


def test_items_may_be_named_as_text(tmp_path):
    items = text(tmp_path, "items.csv", "item,title\n" + "".join(f"p{n},Title {n}\n" for n in range(10)))
    out = import_dataset(str(reviews(tmp_path)), "t", str(tmp_path), choices=Choices(items=str(items)), progress=False)
    assert len(atomic(out, "item")[1]) == 10
    with refused("items", "value", "a dict is no path"):
        import_dataset(str(items), "u", str(tmp_path), choices=Choices(items={}))  # type: ignore[arg-type]


@given(st.sampled_from(["None", "null", "~", "'a'", '"a"', "a'", "none", "7", "1.5", "True", "[a]", "a-b", "my shop"]))
def test_a_name_that_a_run_would_read_otherwise_is_refused(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("name")
    file = text(folder, "mine.csv", "user,item,time\nu,i,1\n")
    if parse_text(name) == name:
        assert import_dataset(file, name, folder, progress=False).name == name
    else:
        with refused("name", "value", "is not read as the name"):
            import_dataset(file, name, folder, progress=False)


def test_the_property_file_says_how_it_came_and_can_be_changed(tmp_path, capsys):
    words = ["import", str(reviews(tmp_path)), "--name=shop", f"--out={tmp_path}", "--domain=product", "--k_core=2"]
    assert main(words) == 0
    file = tmp_path / "shop" / "shop.yaml"
    assert f"#   {shlex.join(['recbole-llm', *words])}\n" in file.read_text()
    where = {"data_path": str(tmp_path)}
    config = Config("BIGRec", "shop", config_dict=where)
    assert (config["title_field"], config["domain"], config["item_text_fields"]) == ("title", "product", [])
    file.write_text(file.read_text() + "item_inter_num_interval: '[3,inf)'\n")
    assert Config("Pop", "shop", config_dict=where)["item_inter_num_interval"] == "[3,inf)"
    # The user's word comes last, also where data_path is the folder of the data set itself.
    given = {"data_path": str(tmp_path / "shop"), "domain": "book"}
    assert Config("BIGRec", "shop", config_dict=given)["domain"] == "book"
    file.write_text("titel_field: title\n")
    assert main(["--model=Pop", "--dataset=shop", f"--data_path={tmp_path}"]) == 2
    assert f"{file}: titel_field is not a setting of Pop; did you mean title_field" in capsys.readouterr().err


def test_a_data_set_is_not_replaced_by_mistake(tmp_path, capsys):
    words = ["import", str(reviews(tmp_path)), "--name=shop", f"--out={tmp_path}"]
    assert main(words) == 0
    before = (tmp_path / "shop" / "shop.inter").read_bytes()
    assert main([*words, "--k-core=3"]) == 2
    assert "name: " in (said := capsys.readouterr().err) and "replace it with --overwrite" in said
    assert (tmp_path / "shop" / "shop.inter").read_bytes() == before
    assert main([*words, "--overwrite"]) == 0
    assert sorted(file.name for file in (tmp_path / "shop").iterdir()) == ["shop.inter", "shop.item", "shop.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "import: the following arguments are required: path, --name"),
        (["missing.csv", "--name=a"], "cannot read missing.csv: there is no such file or folder"),
        (["reviews.csv", "--name=a/b"], "name: 'a/b' is no name of a folder"),
        (
            ["reviews.csv", "--name=ml-100k"],
            "name: ml-100k is the data set that RecBole brings along; give another name",
        ),
        (["reviews.csv", "--name=None"], "name: --dataset=None is not read as the name None; give another one"),
        (["reviews.csv", "--name=~"], "name: --dataset=~ is not read as the name ~"),
        (["reviews.csv", "--name='a'"], "name: --dataset='a' is not read as the name 'a'"),
        (["reviews.csv", "--name=a", "--layout=netflix"], "layout: there is no layout 'netflix'"),
        (["reviews.csv", "--name=a", "--layout=yelp"], "layout: reviews.csv is not of the layout yelp"),
        (["reviews.csv", "--name=a", "--domain=moovie"], "domain: there is no domain 'moovie'; did you mean movie"),
        (
            ["reviews.csv", "--name=a", "--quoting=some"],
            "quoting: 'some' is not allowed; choose one of auto, csv, none",
        ),
        (["reviews.csv", "--name=a", "--bad-lines=fix"], "bad_lines: 'fix' is not allowed"),
        (["reviews.csv", "--name=a", "--split=mine"], "split: 'mine' is not allowed"),
        (["reviews.csv", "--name=a", "--k-core=few"], "k-core: 'few' is not allowed; give a number"),
        (["reviews.csv", "--name=a", "--k-kore=3"], "--k-kore is not a flag of import; did you mean k-core"),
        (["reviews.csv", "--name=a", "--items=none.csv"], "items: cannot read none.csv: there is no such file"),
        (["reviews.xlsx", "--name=a"], "reviews.xlsx ends in none of .csv, .tsv.*; save the sheet as CSV"),
        (["reviews.csv", "more.csv", "--name=a"], "import: 'more.csv' is not part of a flag"),
        (["reviews.csv", "--name=a", "--columns"], "--columns has no value; write --columns=value"),
        (
            [".", "--name=a"],
            "has no known layout \\(it holds reviews.csv, reviews.xlsx\\); give the file of interactions",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    import re

    reviews(tmp_path)
    text(tmp_path, "reviews.xlsx", "x")
    with working_in(tmp_path):
        assert main(["import", *words]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("recbole-llm: error: ") and re.search(message, error), error
    assert not (tmp_path / "dataset").exists()


def test_it_starts_without_torch_and_recbole(tmp_path):
    code = """
        import sys
        from recbole_llm.experiment.command import main

        assert main(sys.argv[1:]) == 0
        heavy = {"torch", "recbole", "transformers", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """
    fresh_python("import", reviews(tmp_path), "--name=a", f"--out={tmp_path}", code=code)
    assert len(atomic(tmp_path / "a", "inter")[1]) == 72


def test_every_word_is_on_the_page():
    page = (REPOSITORY / "docs" / "import.md").read_text(encoding="utf-8")
    words = {word for action in parser()._actions for word in action.option_strings if word.startswith("--")}
    assert {word for word in words if f"`{word}" not in page} == {"--help"}


PEAK = """
import sys
from pathlib import Path

from recbole_llm.data.importers import clock  # with what it imports on use
from recbole_llm.data.importers.importing import import_dataset

def peak():  # of this process alone: getrusage knows that of the one it was started by
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

clock.to_nanoseconds(["2024-01-01"], "iso")
before = peak()
import_dataset(sys.argv[1], "big", sys.argv[2], progress=False)
print((peak() - before) / 1024)
"""


def peak_mib(folder: Path, n_rows: int) -> float:
    """How far memory grows while a table of so many rows is imported, in MiB."""
    file = folder / "big.csv"
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("user_id,item_id,rating,timestamp,title\n")
        for row in range(n_rows):
            user, item = row * 7919 % (n_rows // 20), row * 104_729 % 50_000
            stream.write(f"user{user},item{item},{1 + row % 5},{1_600_000_000 + row},Title {item}\n")
    out = fresh_python(file, folder / "out", code=PEAK, timeout=3600).stdout
    lines = sum(1 for _ in open(folder / "out" / "big" / "big.inter", encoding="utf-8"))
    assert lines == n_rows + 1
    return float(out.split()[-1])


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")


@linux
def test_memory_grows_by_numbers_and_not_by_lines(tmp_path):
    """A row is 25 bytes: its fields as Python's texts would be 400, 40 MiB in all, beside the 40 of ids and blocks."""
    assert peak_mib(tmp_path, 100_000) < 60


@linux
@pytest.mark.slow
def test_ten_million_rows_stay_within_four_gib(tmp_path):
    assert peak_mib(tmp_path, 10_000_000) < 4096
