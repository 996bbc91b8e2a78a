"""The cache: whole or not at all, keyed by what went in, damage found."""

import threading
from pathlib import Path

import pytest

from edgepack.cache import Cache, Step


def step(**changes: object) -> Step:
    fields: dict[str, object] = {"name": "export", "version": "1", "inputs": {"model": "aa"}, "params": {"p": 1}}
    return Step(**{**fields, **changes})  # type: ignore[arg-type]


def write_hello(out: Path) -> None:
    (out / "hello.txt").write_text("hello")


def never(out: Path) -> None:
    raise AssertionError("the step ran although its output was there")


def test_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.output(step(), write_hello)
    again = cache.output(step(), never)

    assert (first.reused, again.reused) == (False, True)
    assert first.digest == again.digest
    assert (again.path / "hello.txt").read_text() == "hello"


@pytest.mark.parametrize(
    "changes", [{"name": "x"}, {"version": "2"}, {"inputs": {"model": "bb"}}, {"params": {"p": 2}}]
)
def test_each_part_of_the_key_makes_another_entry(changes: dict[str, object]) -> None:
    assert step().key != step(**changes).key


def test_the_title_is_for_people_and_not_part_of_the_key() -> None:
    assert step(title="one").key == step(title="two").key


def test_a_failed_step_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(out: Path) -> None:
        (out / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.output(step(), fail)

    assert cache.lookup(step()) is None
    assert not list(tmp_path.rglob("half.txt"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "add", "remove", "manifest"])
def test_a_damaged_entry_is_found_and_made_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    entry = cache.output(step(), write_hello)
    file = entry.path / "hello.txt"
    if damage == "flip":
        file.write_text("hellp")
    elif damage == "truncate":
        file.write_text("hel")
    elif damage == "add":
        (entry.path / "planted.pkl").write_text("x")
    elif damage == "remove":
        file.unlink()
    else:
        (entry.path.parent / "entry.json").write_text("{")

    again = cache.output(step(), write_hello)

    assert not again.reused
    assert (again.path / "hello.txt").read_text() == "hello"
    assert not (again.path / "planted.pkl").exists()


def test_two_builds_at_once_run_a_step_once(tmp_path: Path) -> None:
    runs = []
    together = threading.Barrier(2)

    def slow(out: Path) -> None:
        runs.append(1)
        write_hello(out)

    def build() -> None:
        together.wait()
        Cache(tmp_path).output(step(), slow)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(runs) == 1


def test_a_full_disk_is_a_sentence_with_numbers(tmp_path: Path) -> None:
    from edgepack.errors import OutOfSpace

    def full(out: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutOfSpace, match="MiB free") as error:
        Cache(tmp_path).output(step(), full)

    assert error.value.exit_code == 4
    assert not [p for p in tmp_path.rglob(".*") if p.is_dir()]
