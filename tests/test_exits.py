"""The exit codes, and how the column is found before anything is parsed."""

import subprocess
import sys

import pytest

from probe import exits

CODES = """
              shell docker k8s nagios npd slurm
healthy       0     0      0   0      0   0
degraded      0     0      0   1      0   0
unhealthy     1     1      1   2      1   1
undetermined  3     1      1   3      2   0
internal      3     1      1   3      2   0
usage         2     1      1   3      2   0
interrupted   130   1      1   3      2   0
terminated    143   1      1   3      2   0
"""
HEAD, *ROWS = [line.split() for line in CODES.strip().splitlines()]
CELLS = [(column, row[0], int(code)) for row in ROWS for column, code in zip(HEAD, row[1:], strict=True)]


@pytest.mark.parametrize(("column", "what", "expected"), CELLS)
def test_each_end_has_the_code_that_the_design_gives_its_column(column: str, what: str, expected: int) -> None:
    assert expected == exits.code(column, what)


@pytest.mark.parametrize(("column", "expected"), list(zip(HEAD, [3, 1, 1, 3, 2, 3], strict=True)))
def test_what_could_not_be_written_is_a_failure_in_every_column(column: str, expected: int) -> None:
    assert expected == exits.unwritten(column, 0)


@pytest.mark.parametrize("otherwise", [130, 143])
def test_what_could_not_be_written_hides_no_worse_end(otherwise: int) -> None:
    assert otherwise == exits.unwritten("shell", otherwise)


@pytest.mark.parametrize(("column", "expected"), [(column, int(column != "docker")) for column in HEAD])
def test_strict_makes_degraded_1_but_for_docker(column: str, expected: int) -> None:
    assert expected == exits.code(column, "degraded", strict=True)


@pytest.mark.parametrize(("column", "what", "expected"), [cell for cell in CELLS if cell[1] != "degraded"])
def test_strict_changes_nothing_else(column: str, what: str, expected: int) -> None:
    assert expected == exits.code(column, what, strict=True)


@pytest.mark.parametrize(("column", "what", "expected"), CELLS)
def test_liveness_leaves_with_0_where_probe_could_not_tell(column: str, what: str, expected: int) -> None:
    could_not_tell = what in ("undetermined", "internal")
    assert (0 if could_not_tell else expected) == exits.code(column, what, liveness=True)


@pytest.mark.parametrize(
    ("argv", "env", "expected"),
    [
        ("check", {}, "shell"),
        ("check --exit-codes docker", {}, "docker"),
        ("check --exit-codes=k8s", {}, "k8s"),
        ("--exit-codes nagios check", {"PROBE_EXIT_CODES": "npd"}, "nagios"),
        ("check", {"PROBE_EXIT_CODES": "slurm"}, "slurm"),
        ("check", {"PROBE_EXIT_CODES": ""}, "shell"),
        ("check --exit-codes docker --exit-codes npd", {}, "npd"),
        ("check --exit-codes", {"PROBE_EXIT_CODES": "docker"}, "shell"),
        ("check --exit-codes=", {}, "shell"),
        ("check --exit-codes dokcer", {}, "shell"),
        ("check", {"PROBE_EXIT_CODES": "Docker"}, "shell"),
        ("gate -- --exit-codes docker", {}, "shell"),
    ],
)
def test_the_column_is_the_last_flag_else_the_variable_else_shell(
    argv: str, env: dict[str, str], expected: str
) -> None:
    assert expected == exits.column(argv.split(" "), env)


def test_exits_imports_nothing_that_a_bare_interpreter_has_not() -> None:
    program = "import sys; before = set(sys.modules); import probe.exits; print(sorted(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert "['probe', 'probe.exits']" == ran.stdout.strip()
