"""Which checkpoints count, which training each belongs to, and what damage makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.run_dir import checkpoints

TRAINING = {"id": "a", "base": "f00"}
FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


def write(folder: Path, step: int, best_step: int | None = None, training: checkpoints.Identity = TRAINING) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).write_bytes(f"{name} of step {step}".encode())
    checkpoints.seal(place, training, best_step)
    return place


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    (tmp_path / "checkpoint-100" / checkpoints.SEAL_FILE).unlink()
    assert [place.name for place in checkpoints.newest_first(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]
    assert [place.name for place in checkpoints.of_training(tmp_path, "a")] == ["checkpoint-10", "checkpoint-9"]
    assert checkpoints.of_training(tmp_path, "b") == []
    assert checkpoints.of_training(tmp_path / "none", "a") == []


def test_folders_of_others_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-best", "checkpoint-18-backup", "my-checkpoint-3", "checkpoint-"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert checkpoints.newest_first(tmp_path) == []


def test_an_intact_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    assert checkpoints.why_not_resumable(write(tmp_path, 4), TRAINING) is None
    assert checkpoints.why_not_resumable(write(tmp_path, 6, best_step=4), TRAINING) is None
    assert checkpoints.why_not_resumable(write(tmp_path, 8, best_step=8), TRAINING) is None


def test_the_best_one_before_the_best_one_is_not_needed(tmp_path: Path) -> None:
    write(tmp_path, 4, best_step=2)
    assert checkpoints.why_not_resumable(write(tmp_path, 6, best_step=4), TRAINING) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "flipped", "directory"])
def test_damage_to_any_file_is_found(tmp_path: Path, name: str, harm: str) -> None:
    """A missing optimizer.pt used to go on with other losses, and an empty one was "a bug"."""
    file = write(tmp_path, 4) / name
    content = file.read_bytes()
    file.unlink()
    if harm == "directory":
        file.mkdir()
    elif harm != "missing":
        file.write_bytes({"empty": b"", "cut": content[:-1], "flipped": bytes([content[0] ^ 1]) + content[1:]}[harm])
    damage = checkpoints.damage_of(tmp_path / "checkpoint-4", TRAINING)
    assert damage is not None
    assert damage.startswith(str(file))


def test_damage_to_the_best_checkpoint_is_a_damage_of_those_that_need_it(tmp_path: Path) -> None:
    best, later = write(tmp_path, 4, best_step=4), write(tmp_path, 6, best_step=4)
    (best / "optimizer.pt").write_bytes(b"")
    assert checkpoints.why_not_resumable(later, TRAINING) == f"{best / 'optimizer.pt'} is damaged"
    assert checkpoints.why_not_resumable(write(tmp_path, 8, best_step=2), TRAINING) == (
        f"{tmp_path / 'checkpoint-2'} is incomplete or missing"
    )


def test_a_checkpoint_of_another_training_is_told(tmp_path: Path) -> None:
    place = write(tmp_path, 4)
    assert checkpoints.damage_of(place, {**TRAINING, "id": "b"}) == f"{place} belongs to another training"
    assert checkpoints.damage_of(place, {**TRAINING, "base": "f01"}) == f"{place} belongs to another training"


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"training": ',
        "[]",
        "{}",
        '{"training": {}, "files": {}, "best_step": null, "x": 1}',
        '{"training": 1, "files": {}, "best_step": null}',
    ],
)
def test_a_damaged_seal_makes_it_incomplete(tmp_path: Path, content: str) -> None:
    place = write(tmp_path, 4)
    (place / checkpoints.SEAL_FILE).write_text(content)
    assert not checkpoints.is_sealed(place)
    assert checkpoints.damage_of(place, TRAINING) == f"{place} is incomplete or missing"


@pytest.mark.parametrize(
    ("limit", "best_step", "kept"),
    [
        (1, None, {8}),
        (2, None, {6, 8}),
        (1, 8, {8}),
        (1, 2, {2, 8}),
        (2, 2, {2, 8}),
        (3, 2, {2, 6, 8}),
        (9, 2, {2, 4, 6, 8}),
        (None, 2, {2, 4, 6, 8}),
    ],
)
def test_surplus_ones_are_removed_but_neither_the_newest_nor_the_best(
    tmp_path: Path, limit: int | None, best_step: int | None, kept: set[int]
) -> None:
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    (tmp_path / "checkpoint-1-backup").mkdir()
    checkpoints.remove_surplus(tmp_path, limit, best_step)
    assert names(tmp_path) == {"checkpoint-1-backup", *(f"checkpoint-{step}" for step in kept)}
