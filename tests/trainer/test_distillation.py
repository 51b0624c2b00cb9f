"""Self-distillation: whose answers they are, which are kept, what a broken run leaves, and the distance they have."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.grounding import ItemIndex
from recbole_llm.model.rows import RowReader
from recbole_llm.prompt.layout import Layout
from recbole_llm.prompt.titles import clean_answer
from recbole_llm.stages import stage_seed
from recbole_llm.trainer import distillation
from recbole_llm.trainer.distillation import (
    DistanceMeter,
    distil,
    distilled_targets,
    read_answers,
    row_hash,
    summarise,
)
from recbole_llm.trainer.pipeline import Pipeline
from tests.refusals import refused

TITLES = [None, "Heat", "Babe", "Élan vital", "Heat", "A\u2028B", 'Say "no"']
N_ROWS = 11
EOS = 0
EXAMPLES = [([5, row], [9, row % 3, EOS]) for row in range(N_ROWS)]
DEFAULTS = {"sd_empty": "real", "sd_permuted": False}


class Answering:
    """What self-distillation asks of a recommender: a table of answers by the row's own number."""

    ITEM_ID = "item_id"

    def __init__(self, answers: Sequence[Sequence[str]], seed: int = 0) -> None:
        self.answers, self.seed, self.asked = answers, seed, []
        self.catalog = ItemCatalog(TITLES)
        self.vectors = np.random.default_rng(7).normal(size=(len(TITLES), 3)).astype(np.float32)
        self.vectors[0], self.vectors[4] = 0, self.vectors[1]
        self.index = ItemIndex(self.vectors, rankable=self.catalog.rankable, representative=self.catalog.representative)
        self.prompts, self.layout = self, Layout(("", ""), ("history",), "plain")

    def generate_text(self, rows: Interaction) -> list[str]:
        return [beams[0] for beams in self.generate_beams(rows)]

    def generate_beams(self, rows: Interaction) -> list[list[str]]:
        self.asked += rows["row"].tolist()
        return [list(self.answers[row]) for row in rows["row"].tolist()]

    @contextmanager
    def searching(self, num_beams: int | None) -> Iterator[None]:
        yield

    def answer_vectors(self, rows: Interaction) -> np.ndarray:
        return self.ground(self.generate_text(rows))

    def ground(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.embed(clean_answer(text)) for text in texts])

    def embed(self, text: str) -> np.ndarray:
        item = self.catalog.lookup(text)
        noise = np.random.default_rng(list(text.encode())).normal(size=3).astype(np.float32)
        return noise if item is None else self.vectors[item]

    def title_vectors(self, items: np.ndarray) -> np.ndarray:
        return self.vectors[items]

    def response_from_text(self, text: str) -> list[int]:
        return [*text.encode(), EOS]

    def stage_seed(self, *names: str | int) -> int:
        return stage_seed(self.seed, *names)


def make_rows(items: Sequence[int] | None = None) -> Interaction:
    items = [1 + row % (len(TITLES) - 1) for row in range(N_ROWS)] if items is None else items
    return Interaction({"row": torch.arange(len(items)), "item_id": torch.tensor(items)})


ANSWERS = [
    [text] for text in ('"Heat"', "a\u2028b", "x\x85y\x0bz", 'é\n"ü', "", '""', "日本語", "\ufffd\x1c", "b", "c", "d")
]


def distilled(folder: Path, answers: Sequence[Sequence[str]] = ANSWERS, select: str = "top") -> Answering:
    folder.mkdir(exist_ok=True)
    model = Answering(answers)
    distil(model, make_rows(), EXAMPLES, select, folder)
    return model


# --------------------------------------------------------------------------------------------------- rows and files


def test_a_row_is_told_by_its_prompt_and_its_true_answer():
    examples = [([5, 1], [9, 0]), ([5], [1, 9, 0]), ([5, 1], [9, 1]), ([51], [9, 0]), ([1, 5], [9, 0])]
    assert len({row_hash(example) for example in examples}) == len(examples)
    assert row_hash(([5, 1], [9, 0])) == row_hash(([5, 1], [9, 0])) and len(row_hash(examples[0])) == 16


def test_answers_come_back_as_they_were_whatever_letters_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "CHUNK", 4)
    model = distilled(tmp_path)
    assert read_answers(tmp_path / "answers.jsonl", EXAMPLES) == [text for (text,) in ANSWERS]
    assert model.asked == list(range(N_ROWS))
    assert (tmp_path / "answers.jsonl").read_bytes().count(b"\n") == N_ROWS


@pytest.mark.parametrize("select", ["top", "nearest"])
def test_a_file_cut_anywhere_is_completed_to_the_same(tmp_path, monkeypatch, select):
    """Inside a line, between two lines: what was not wholly written is answered again."""
    monkeypatch.setattr(distillation, "CHUNK", 4)
    distilled(tmp_path / "whole", select=select)
    answers = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    (file,) = (tmp_path / "whole").glob("unfinished/distilled-answers-*.jsonl")
    whole = file.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    (tmp_path / "broken" / "unfinished").mkdir(parents=True)
    for cut in [*range(0, len(whole), 7), *ends, *(end + 1 for end in ends)]:
        (tmp_path / "broken" / "unfinished" / file.name).write_bytes(whole[:cut])
        model = distilled(tmp_path / "broken", select=select)
        assert (tmp_path / "broken" / "answers.jsonl").read_bytes() == answers
        assert model.asked == list(range(whole[:cut].count(b"\n") * 4, N_ROWS))


def test_a_broken_distillation_goes_on_after_its_last_chunk(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(distillation, "CHUNK", 4)
    answer = Answering.generate_text

    def fail(self: Answering, rows: Interaction) -> list[str]:
        if rows["row"][0] == 8:
            raise KeyboardInterrupt
        return answer(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Answering, "generate_text", fail)
        distilled(tmp_path)
    monkeypatch.setattr("recbole_llm.kept._written", set())  # as in another process
    with caplog.at_level(logging.INFO):
        assert distilled(tmp_path).asked == [8, 9, 10]
    assert "Resuming after 8 rows of distilled-answers" in caplog.text
    assert read_answers(tmp_path / "answers.jsonl", EXAMPLES) == [text for (text,) in ANSWERS]


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "has 10 answers for 11 training rows; leave sd_file out"),
        (lambda rows: [*rows, rows[0]], "has 12 answers for 11 training rows"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "line 1 of .* belongs to another row, prompt or order"),
        (lambda rows: [*rows[:9], {**rows[9], "row": "0" * 16}, rows[10]], "line 10 of .* belongs to another row"),
        (lambda rows: [{"answer": "x"}, *rows[1:]], "holds no distilled answers; give the answers.jsonl of a run"),
        (lambda rows: [{**rows[0], "answer": None}, *rows[1:]], "holds no distilled answers"),
        (lambda rows: [["x"], *rows[1:]], "holds no distilled answers"),
        (lambda rows: [], "holds no distilled answers"),
    ],
)
def test_answers_of_other_rows_are_refused(tmp_path, change, message):
    distilled(tmp_path)
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in change(entries(tmp_path))))
    with refused("sd_file", "file", f"sd_file: .*{message}"):
        read_answers(file, EXAMPLES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\); set the right one"),
        (b"\x93NUMPY\x01\x00", "holds no distilled answers"),
        (b"row,answer\n", "holds no distilled answers"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with refused("sd_file", "file", f"sd_file: .*{message}"):
        read_answers(tmp_path / "file", EXAMPLES)
    with refused("sd_file", "file", "Is a directory"):
        read_answers(tmp_path, EXAMPLES)


def test_line_ends_of_another_system_and_a_missing_last_one_are_taken(tmp_path):
    distilled(tmp_path)
    expected = read_answers(tmp_path / "answers.jsonl", EXAMPLES)
    content = (tmp_path / "answers.jsonl").read_bytes()
    for changed in (content.replace(b"\n", b"\r\n"), content.removesuffix(b"\n")):
        (tmp_path / "copy.jsonl").write_bytes(changed)
        assert read_answers(tmp_path / "copy.jsonl", EXAMPLES) == expected


# ------------------------------------------------------------------------------------------------ which beam is kept


def test_nearest_keeps_the_beam_nearest_to_the_rows_own_title(tmp_path):
    draw = np.random.default_rng(3)
    beams = [[f"{row} {draw.integers(99)}" for _ in range(draw.integers(1, 5))] for row in range(N_ROWS)]
    beams[4].append(f'"{TITLES[5]}"')  # row 4 has item 5
    model = distilled(tmp_path / "nearest", beams, "nearest")
    chosen = read_answers(tmp_path / "nearest" / "answers.jsonl", EXAMPLES)
    for row, (item, kept) in enumerate(zip(make_rows()["item_id"].tolist(), chosen, strict=True)):
        distances = [float(((model.embed(clean_answer(text)) - model.vectors[item]) ** 2).sum()) for text in beams[row]]
        assert kept == beams[row][distances.index(min(distances))]
    assert chosen[4] == beams[4][-1]
    top = read_answers_of(tmp_path / "top", beams)
    assert top == [own[0] for own in beams] and sum(a != b for a, b in zip(top, chosen, strict=True)) > 2


def read_answers_of(folder: Path, beams: Sequence[Sequence[str]]) -> list[str]:
    distilled(folder, beams)
    return read_answers(folder / "answers.jsonl", EXAMPLES)


def test_of_equally_near_beams_the_better_one_is_kept(tmp_path):
    beams = [['"zzz"', "zzz", " zzz "]] * N_ROWS
    distilled(tmp_path, beams, "nearest")
    assert read_answers(tmp_path / "answers.jsonl", EXAMPLES) == ['"zzz"'] * N_ROWS


# ----------------------------------------------------------------------------------------------------------- targets


def targets_of(texts: Sequence[str], seed: int = 0, **settings: Any) -> list[list[int]]:
    return distilled_targets(Answering([], seed), texts, EXAMPLES[: len(texts)], {**DEFAULTS, **settings})


def test_texts_become_targets_raw_with_an_end():
    assert targets_of(["ab", ' "c"\nd']) == [[97, 98, EOS], [*b' "c"\nd', EOS]]


def test_an_empty_answer_becomes_the_true_one_or_stays(caplog):
    texts = ["a", "", '""', ' "\n" ', '"', "b"]
    real = [[97, EOS], *(list(EXAMPLES[row][1]) for row in range(1, 5)), [98, EOS]]
    assert targets_of(texts) == real
    assert "4 of 6 distilled answers are empty (sd_empty: real)." in caplog.text
    assert targets_of(texts, sd_empty="keep") == [[*text.encode(), EOS] for text in texts]
    assert all(target[-1] == EOS for target in targets_of(texts, sd_empty="keep"))


@pytest.mark.parametrize(("n_empty", "level"), [(0, None), (5, logging.INFO), (6, logging.WARNING)])
def test_many_empty_answers_are_a_warning_and_few_are_counted(caplog, monkeypatch, n_empty, level):
    monkeypatch.setattr(f"{__name__}.EXAMPLES", [([5], [9, EOS])] * 100)
    with caplog.at_level(logging.INFO):
        targets_of([""] * n_empty + ["a"] * (100 - n_empty))
    found = [record.levelno for record in caplog.records if "distilled answers are empty" in record.getMessage()]
    assert found == ([] if level is None else [level])


def test_answers_that_have_no_positions_are_cut_by_the_prompts_of_their_own_rows(caplog):
    """So is what a stage depends on; where all fit, it is what it was."""
    model, examples = Answering([]), [([1] * 5, [9, EOS]), ([1] * 8, [9, EOS]), ([1] * 8, [9, EOS])]
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=10))
    model.backbone = SimpleNamespace(model=SimpleNamespace(config=config))
    model.fitted = partial(RowReader.fitted, model)
    settings = SimpleNamespace(sd_rows=None)
    tuning: Any = SimpleNamespace(
        model=model, rows=SimpleNamespace(examples=examples), distillation=settings, config=DEFAULTS
    )

    def found(*texts: str) -> tuple[list[list[int]], Any]:
        pipeline = Pipeline(tuning, ())
        pipeline._distilled_answers = lambda chosen: ([texts[row] for row in chosen], "source")
        return pipeline._targets()

    assert found("abcde", "ab", "a") == ([[*b"abcde", EOS], [*b"ab", EOS], [*b"a", EOS]], "source")
    assert not caplog.records
    answers, source = found("abcdefg", "abc", "a")
    assert answers == [[*b"abcde", EOS], [*b"ab", EOS], [*b"a", EOS]] and source != "source"
    assert "2 distilled answers lost their end" in caplog.text


@pytest.mark.parametrize("n", [2, 3, 11])
@pytest.mark.parametrize("seed", range(4))
def test_permuted_targets_are_the_same_ones_and_no_row_keeps_its_own(n, seed):
    texts = [chr(97 + row) for row in range(n)]
    plain, permuted = targets_of(texts, seed), targets_of(texts, seed, sd_permuted=True)
    assert sorted(permuted) == sorted(plain) and not any(a == b for a, b in zip(plain, permuted, strict=True))
    assert permuted == targets_of(texts, seed, sd_permuted=True)


def test_the_seed_decides_the_permutation():
    texts = [chr(97 + row) for row in range(N_ROWS)]
    assert targets_of(texts, seed=1, sd_permuted=True) != targets_of(texts, seed=2, sd_permuted=True)
    assert targets_of(["a"], sd_permuted=True) == targets_of(["a"])


# --------------------------------------------------------------------------------------------- summary and distance


def test_the_summary_counts_what_the_answers_are(tmp_path):
    """Items 1 and 4 share a title, so either is the true one for the other."""
    items = [1, 4, 2, 3, 5, 6, 2, 1]
    texts = ['"Heat"', '"Heat"', '"Heat"', '"Élan vital"', '"', '"Say "no""', "nothing known", "\n"]
    model = Answering([])
    summarise(model, make_rows(items), texts, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())
    nearest = np.load(tmp_path / "nearest.npy")
    rankable = [1, 2, 3, 5, 6]
    expected = [
        min(rankable, key=lambda item: float(np.linalg.norm(model.embed(clean_answer(text)) - model.vectors[item])))
        for text in texts
    ]
    assert nearest.dtype == np.int64 and nearest.tolist() == [list(pair) for pair in zip(items, expected, strict=True)]
    same_title = [TITLES[near] == TITLES[item] for near, item in zip(expected, items, strict=True)]
    assert found == {
        "rows": 8,
        "true_title": 4 / 8,
        "catalogue_title": 5 / 8,
        "nearest_is_target": sum(same_title) / 8,
        "empty": 2 / 8,
    }


def test_distance_is_measured_on_a_sample_that_does_not_change():
    rows = make_rows()
    model = Answering(ANSWERS)
    meter = DistanceMeter(model, rows, 4)
    first, again = meter.measure(), meter.measure()
    assert first == again and model.asked[:4] == model.asked[4:]
    chosen = model.asked[:4]
    assert chosen == sorted(set(chosen))
    own = [(model.vectors[rows["item_id"][row]], model.embed(clean_answer(ANSWERS[row][0]))) for row in chosen]
    assert first == pytest.approx(sum(math.dist(*pair) for pair in own) / 4, rel=1e-9)
    other = Answering(ANSWERS, seed=5)
    DistanceMeter(other, rows, 4).measure()
    assert other.asked != chosen


def test_a_sample_is_never_larger_than_the_rows_and_true_titles_are_at_distance_0():
    rows = make_rows()
    model = Answering([[f'"{TITLES[item]}"'] for item in rows["item_id"].tolist()])
    assert DistanceMeter(model, rows, 256).measure() == 0.0
    assert model.asked == list(range(N_ROWS))
