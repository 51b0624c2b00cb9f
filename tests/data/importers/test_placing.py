"""A data set's files are put in their place all at once: kills, full disks, files of an earlier import."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path

import pytest

from recbole_llm.data.importers import placing
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.settings.data_folder import find_data
from tests.data.importers.public import text
from tests.refusals import refused

TITLED = "user,item,time,title\n" + "".join(f"u,i{n},{n},Title {n}\n" for n in range(4))
OTHER = "user,item,time\n" + "".join(f"v,j{n},{n}\n" for n in range(4))


def imported(folder: Path, content: str, overwrite: bool = False) -> Path:
    file = text(folder, "mine.csv", content)
    return import_dataset(file, "shop", folder / "out", overwrite=overwrite, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def whole(folder: Path, content: str) -> dict[str, bytes]:
    return files(imported(folder, content))


def killed(folder: Path, content: str, moves: int) -> bool:
    """Import in a process that is killed after so many renames and removals. Returns: whether it was."""
    child = os.fork()
    if child == 0:
        done = [0]

        def counted(call):
            def after(*args, **options):
                if done[0] == moves:
                    os._exit(9)
                done[0] += 1
                return call(*args, **options)

            return after

        for name in ("replace", "rename", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        for name in ("touch", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        try:
            imported(folder, content, overwrite=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
@pytest.mark.parametrize("exists", [False, True])
def test_a_killed_import_is_never_taken_for_a_whole_one(tmp_path, exists, caplog):
    """Whatever it was killed between: the data set is the old one, the new one, or refused."""
    old, new = (whole(tmp_path / name, content) for name, content in (("old", TITLED), ("new", OTHER)))
    old, new = ({name: text for name, text in found.items() if name != "shop.yaml"} for found in (old, new))
    ends = set()
    for moves in range(16):
        folder = tmp_path / str(moves)
        if exists:
            imported(folder, TITLED)
        dead = killed(folder, OTHER, moves)
        shop = folder / "out" / "shop"
        try:
            assert find_data("shop", str(folder / "out"), True) == str(shop)
        except ValueError as error:
            assert dead and ("was interrupted" in str(error) if exists else "no data set 'shop'" in str(error))
            ends.add("refused")
        else:
            found = files(shop)
            assert found.pop("shop.yaml")
            assert found in (old, new)
            ends.add("old" if found == old else "new")
        caplog.clear()
        imported(folder, OTHER, overwrite=shop.exists() and not placing.is_unfinished(shop))
        assert set(files(shop)) == {"shop.inter", "shop.yaml"} and find_data("shop", str(folder / "out"), True)
        assert ("is of an import that was killed" in caplog.text) == dead
    assert ends == ({"old", "new", "refused"} if exists else {"new", "refused"})


def test_an_import_over_another_leaves_no_file_of_it_and_all_of_the_users(tmp_path, caplog):
    shop = imported(tmp_path, TITLED)
    for name in ("notes.txt", "shop.kg"):
        (shop / name).write_text("mine")
    (shop / "shop.train.inter").write_text("user_id:token\n")
    imported(tmp_path, OTHER, overwrite=True)
    assert sorted(path.name for path in shop.iterdir()) == ["notes.txt", "shop.inter", "shop.kg", "shop.yaml"]
    assert f"{shop}: no import wrote shop.kg, which stays as it was" in caplog.messages
    assert "item_id:token\ttimestamp" in (shop / "shop.inter").read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("exists", [False, True])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_what_was(tmp_path, monkeypatch, number, exists):
    before = whole(tmp_path, TITLED) if exists else {}

    def failing(file, mode="r", *args, **options):
        if "w" in mode and str(file).endswith(".yaml"):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, mode, *args, **options)

    opened = builtins.open
    source = text(tmp_path, "other.csv", OTHER)
    monkeypatch.setattr(builtins, "open", failing)
    with refused("out", "file", f"cannot write .*shop .{os.strerror(number)}.; make room there"):
        import_dataset(source, "shop", tmp_path / "out", overwrite=True, progress=False)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shop"] * exists
    assert not exists or files(tmp_path / "out" / "shop") == before


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "out").write_text("")
    with refused("out", "file", "cannot write .*shop"):
        imported(tmp_path, TITLED)
