"""Samples -> median, percentiles, blocks; shares of the time; files by rename."""

import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.config import UsageError
from probe.measure import files, shares
from probe.measure.summary import BLOCKS, joined, parts, quantile, summarise

SOON = time.monotonic() + 3600
"""Until when a pipe is written to: these have readers, or say at once that they have none."""


def test_seconds_become_rates() -> None:
    made = summarise([[0.5, 1.0], [2.0]], 2e12, "FLOP")
    assert (made.unit, made.median, made.n, made.passes) == ("TFLOP/s", 2.0, 3, 2)
    assert made.p5 == pytest.approx(1.1)
    assert made.p95 == pytest.approx(3.8)


def test_bytes_are_gigabytes_and_seconds_stay_seconds() -> None:
    assert summarise([[1.0]], 3e9, "B").median == 3.0
    assert summarise([[0.25]], 1.0, "s").median == 0.25


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert quantile([0.0, 10.0], 0.05) == pytest.approx(0.5)
    assert quantile([7.0], 0.95) == 7.0


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300))
def test_blocks_are_consecutive_and_hold_every_sample_once(values: list[float]) -> None:
    made = parts(values)
    assert [value for part in made for value in part] == values
    assert len(made) == min(BLOCKS, len(values))
    assert max(map(len, made)) - min(map(len, made)) <= 1


def test_time_is_shared_by_weight_and_what_is_left_over_goes_on() -> None:
    first, second, third = shares.ENTRIES[:3]
    whole = first.weight + second.weight + third.weight
    assert shares.share_s(first, [second, third], 100.0) == pytest.approx(100 * first.weight / whole)
    assert shares.share_s(third, [], 80.0) == 80.0


def test_a_program_that_could_do_nothing_with_its_share_gets_none() -> None:
    matmul = shares.BY_NAME["matmul"]
    assert shares.share_s(matmul, [], matmul.least_s * 0.9) == 0.0


def test_programs_are_chosen_by_name_and_glob() -> None:
    assert [entry.name for entry in shares.chosen(["m*"], [])] == ["matmul", "memory"]
    assert "peer" not in [entry.name for entry in shares.chosen([], ["peer"])]


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    before = path.stat().st_ino
    files.replace(str(path), b"new", SOON)
    assert path.read_text() == "new"
    assert path.stat().st_ino != before
    assert [path] == list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    files.replace(str(link), b"new", SOON)
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.replace(str(pipe), b"words", SOON)
    assert os.read(reader, 100) == b"words"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    """Neither one without a reader nor one whose reader does not read."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="nobody reads it"):
        files.replace(str(pipe), b"words", SOON)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="did not take all of it"):
        files.replace(str(pipe), bytes(1 << 21), time.monotonic() + 0.1)
    os.close(reader)


def test_a_file_keeps_its_mode_and_a_new_one_gets_everybody_s(tmp_path: Path) -> None:
    old, new, plain = (tmp_path / name for name in ("old", "new", "plain"))
    old.write_text("old")
    old.chmod(0o600)
    plain.touch()
    for path in (old, new):
        files.replace(str(path), b"words", SOON)
    assert [0o600, plain.stat().st_mode & 0o777] == [path.stat().st_mode & 0o777 for path in (old, new)]


@pytest.mark.parametrize("path", ["/no/such/folder/x.json", "/"])
def test_what_could_not_be_written_is_said_before_anything_is_measured(path: str) -> None:
    with pytest.raises(UsageError):
        files.check_writable(path, "--json")


def test_passes_are_joined_and_of_ranks_the_slowest_counts() -> None:
    assert joined([[[1.0, 2.0], [3.0]]]) == [[1.0, 2.0], [3.0]]
    assert joined([[[1.0, 5.0], [3.0]], [[2.0, 4.0], [1.0]]]) == [[2.0, 5.0], [3.0]]


def test_a_pass_that_a_rank_did_not_come_to_say_is_none() -> None:
    assert joined([[[1.0, 5.0], [3.0]], [[2.0, 4.0]]]) == [[2.0, 5.0]]


def test_a_block_is_a_pass_where_there_are_three() -> None:
    """One whose buffers lay badly is one block of three, and not a third of ten."""
    made = summarise([[1.0] * 10, [2.0] * 10, [1.0] * 10], 1.0, "s")
    assert (made.passes, made.blocks) == (3, (1.0, 2.0, 1.0))


def test_of_fewer_passes_blocks_are_consecutive_samples() -> None:
    made = summarise([[1.0] * 10, [2.0] * 10], 1.0, "s")
    assert (made.passes, len(made.blocks)) == (2, BLOCKS)
