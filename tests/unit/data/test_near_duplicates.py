from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.data.near_duplicates import SLOTS, NearDuplicates, signatures, words_of

STORY = (
    "The station on the hill has a lamp that turns all night. When the fog comes in from the sea, Mrs Hale climbs the "
    "ninety-two steps, winds the clock, and counts the ships that answer her. Nobody has ever asked her to do it."
)


def groups_of(texts: list[str], folder: Path, batch: int = 500) -> list[int]:
    search = NearDuplicates(folder)
    for start in range(0, len(texts), batch):
        search.add(texts[start : start + batch])
    return search.groups().tolist()


def runs(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}


def jaccard(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> float:
    return len(first & second) / len(first | second)


def varied_rows(chance: random.Random) -> list[str]:
    """Plain words, every row three times over, with none to many of its words exchanged."""
    vocabulary = [f"w{number}" for number in range(5000)]
    rows = []
    for _ in range(120):
        original = chance.choices(vocabulary, k=chance.randint(20, 200))
        for share in (0, chance.choice((0.005, 0.01, 0.02, 0.03)), chance.choice((0.1, 0.2, 0.4))):
            changed = [chance.choice(vocabulary) if chance.random() < share else word for word in original]
            rows.append(" ".join(changed))
    chance.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_exact_similarity(tmp_path: Path, seed: int) -> None:
    texts = varied_rows(random.Random(seed))
    sets = [runs(text) for text in texts]
    group = groups_of(texts, tmp_path)
    alike, linked, wrong = 0, 0, []
    for first, second in combinations(range(len(texts)), 2):
        similarity = jaccard(sets[first], sets[second])
        together = group[first] == group[second]
        alike += similarity >= 0.9
        linked += similarity >= 0.9 and together
        if together and similarity < 0.6:
            wrong.append((first, second, similarity))
    assert alike > 50
    assert linked >= 0.95 * alike
    assert not wrong


def test_a_group_is_named_by_its_first_row(tmp_path: Path) -> None:
    texts = ["something else entirely, said once and for all", STORY, "a third thing", STORY + " Ever.", STORY.upper()]
    assert groups_of(texts, tmp_path) == [0, 1, 2, 1, 1]


def test_batches_do_not_matter(tmp_path: Path) -> None:
    texts = varied_rows(random.Random(7))
    whole = groups_of(texts, tmp_path / "whole")
    assert groups_of(texts, tmp_path / "parts", batch=7) == whole
    assert any(first != row for row, first in enumerate(whole))


def test_the_same_in_every_process() -> None:
    script = (
        "from llmft_cli.data.near_duplicates import signatures; print(signatures(['One two three four', '数']).sum(dtype='u8'))"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script]
        outputs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(outputs) == 1
    assert int(outputs.pop()) == int(signatures(["One two three four", "数"]).sum(dtype="u8"))


def test_forked_processes_can_make_signatures_too() -> None:
    script = """
import multiprocessing
from llmft_cli.data.near_duplicates import signatures
texts = [" ".join(str(row * word) for word in range(200)) for row in range(1000)] + ["many words " * 50_000]
whole = signatures(texts)
with multiprocessing.get_context("fork").Pool(2) as pool:
    parts = pool.map_async(signatures, [texts[:500], texts[500:]]).get(20)
assert len(whole) == 1001 and (parts[0] == whole[:500]).all() and (parts[1] == whole[500:]).all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300)


def test_rows_of_any_length_among_others(tmp_path: Path) -> None:
    long = " ".join(f"w{number}" for number in range(130_000))
    assert groups_of([STORY, long, STORY, long + " more", *["a b c d"] * 300, STORY], tmp_path)[:4] == [0, 1, 0, 1]


def test_thousands_of_equal_rows(tmp_path: Path) -> None:
    texts = [STORY if row % 2 else f"row {row} is about number {row * 7} and nothing else" for row in range(20_000)]
    group = numpy.array(groups_of(texts, tmp_path))
    assert (group[1::2] == 1).all()
    assert (group[::2] == numpy.arange(0, 20_000, 2)).all()


def test_a_chain_is_one_group(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(200)]
    texts = []
    for step in range(12):
        texts.append(" ".join(words))
        words[step * 16 : step * 16 + 6] = [f"new{step}of{place}" for place in range(6)]
    assert jaccard(runs(texts[0]), runs(texts[-1])) < 0.5
    assert set(groups_of(texts, tmp_path)) == {0}


def test_an_earlier_search_is_overwritten(tmp_path: Path) -> None:
    groups_of([STORY, STORY], tmp_path)
    assert groups_of(["one row"], tmp_path) == [0]


def test_no_rows(tmp_path: Path) -> None:
    assert NearDuplicates(tmp_path).groups().shape == (0,)


def test_what_a_row_is_made_of(tmp_path: Path) -> None:
    pairs = {
        "case and prose punctuation": ('Say: "Hello, World" (now)!', "say hello world now"),
        "repeated runs": ("one two three one two three one two three", "one two three one two three"),
        "space": ("one  two\tthree\nfour", "one two three four"),
    }
    apart = {
        "signs that calculate": ("what is 3 + 4", "what is 3 * 4"),
        "short rows": ("yes", "no"),
        "nothing but punctuation": ("???", "!!!"),
        "the end of a long word": ("abcdefghijklmnopqrstuvwxyz0", "abcdefghijklmnopqrstuvwxyz1"),
        "the middle of a word": ("abcdefghi-jklm", "abcdefghi+jklm"),
        "languages without spaces": ("今天天气很好我们去公园", "银行明天早上九点钟开门"),
        "empty": ("", "a"),
    }
    for number, (name, (first, second)) in enumerate({**pairs, **apart}.items()):
        assert groups_of([first, second], tmp_path / str(number)) == [0, 0 if name in pairs else 1], name


def test_unspaced_scripts_are_compared_by_character(tmp_path: Path) -> None:
    text = "今天天气很好我们一起去公园散步然后回家吃饭看电视最后早早睡觉准备明天上班"
    assert groups_of([text, text + "了"], tmp_path) == [0, 0]
    assert words_of("aไทยb") == "a ไ ท ย b".encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(), max_size=60), max_size=8))
def test_any_text_has_a_signature(texts: list[str]) -> None:
    made = signatures(texts)
    assert made.shape == (len(texts), SLOTS)
    for row, text in enumerate(texts):
        assert (signatures([text])[0] == made[row]).all()
