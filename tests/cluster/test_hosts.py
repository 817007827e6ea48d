"""Sets of hosts and hostfiles: what is understood, what is refused by name, and what a clean hostfile looks like."""

import builtins
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.cluster import hosts
from probe.cluster.hosts import Host, fold, from_file, from_set, simulated
from probe.config import UsageError


def names(found: tuple[Host, ...]) -> list[str]:
    return [host.name for host in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu[01-03,20]", ["gpu01", "gpu02", "gpu03", "gpu20"]),
        ("gpu[01-02],login1", ["gpu01", "gpu02", "login1"]),
        ("a,b", ["a", "b"]),
        ("a b", ["a", "b"]),
        ("root@a[1-2],b", ["a1", "a2", "b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("10.0.0.1,[fe80::1]:22", ["10.0.0.1", "fe80::1"]),
    ],
)
def test_a_set_of_hosts_is_unfolded(text: str, expected: list[str]) -> None:
    assert expected == names(from_set(text))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "names no host"),
        ("a,b,a", "a: named more than once"),
        ("gpu[1-3],gpu2", "gpu2"),
        ("gpu[1-", "gpu[1-"),
        ("-oProxyCommand=x", "-oProxyCommand=x"),
        ("a;b", "a;b"),
        ("a$(b)", "a$(b)"),
        ("a:0", "a:0"),
        ("a:70000", "a:70000"),
        ("a:", "a:"),
    ],
)
def test_what_is_no_set_of_hosts_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UsageError) as error:
        from_set(text)
    assert named in str(error.value)


def test_user_and_port_are_taken_off_the_name() -> None:
    (host,) = from_set("root@gpu03:2222")
    assert ("gpu03", "root", 2222) == (host.name, host.user, host.port)


def test_two_ports_of_one_address_are_two_hosts() -> None:
    found = from_set("box:2201,box:2202")
    assert ["box:2201", "box:2202"] == names(found)
    assert {"box"} == {host.target for host in found}


def test_without_clustershell_names_go_between_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("ClusterShell"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert ["a", "b"] == names(from_set("a,b"))
    assert fold(["a1", "a2"]) == "a1,a2"
    with pytest.raises(UsageError, match=r"gpu-probe\[gate\]"):
        from_set("a[1-2]")


TEXT = """\
# the good rack
gpu01
gpu02 slots=8
root@gpu03:2222 slots=8 max_slots=8  # spare

gpu04
"""


def test_a_hostfile_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(TEXT)
    found, hostfile = from_file(str(path))
    assert ["gpu01", "gpu02", "gpu03", "gpu04"] == names(found)
    assert hostfile.clean(["gpu01", "gpu03"]) == (
        "# the good rack\ngpu01\nroot@gpu03:2222 slots=8 max_slots=8  # spare\n\n"
    )
    assert hostfile.clean(names(found)) == TEXT


FOLDED = "gpu[01-03] slots=8  # rack 1\nroot@login[1-2]#2\n"


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (["gpu01", "gpu02", "gpu03", "login1", "login2"], FOLDED),
        (["gpu01", "gpu03"], "gpu01 slots=8  # rack 1\ngpu03 slots=8  # rack 1\n"),
        (["login2"], "root@login2#2\n"),
        ([], ""),
    ],
)
def test_a_folded_line_that_loses_a_host_becomes_a_line_for_each_that_is_left(
    tmp_path: Path, kept: list[str], expected: str
) -> None:
    path = tmp_path / "hosts"
    path.write_text(FOLDED)
    found, hostfile = from_file(str(path))
    assert ["gpu01", "gpu02", "gpu03", "login1", "login2"] == names(found)
    assert {"root"} == {host.user for host in found[3:]}
    assert expected == hostfile.clean(kept)


@pytest.mark.parametrize(
    ("text", "expected", "clean"),
    [
        (b"a # x\x0cb\n", ["a"], "a # x\x0cb\n"),
        ("a # x\u2028b\n".encode(), ["a"], "a # x\u2028b\n"),
        (b"a slots=2\r\nb\r\n", ["a", "b"], "a slots=2\r\n"),
        (b"\xef\xbb\xbfa\nb", ["a", "b"], "a\n"),
    ],
    ids=["form feed", "line separator", "CRLF", "byte order mark"],
)
def test_a_line_ends_at_its_newline_and_nowhere_else(
    tmp_path: Path, text: bytes, expected: list[str], clean: str
) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(text)
    found, hostfile = from_file(str(path))
    assert (expected, clean) == (names(found), hostfile.clean(["a"]))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gpu[1-\n", ":1"),
        ("a\nb[1-2]\nb2\n", "b2"),
        ("gpu01 gpu02\n", ":1"),
        ("a\nb slots=x\n", ":2"),
        ("# nothing\n", "names no host"),
        ("a\na\n", "more than once"),
    ],
)
def test_a_hostfile_that_is_wrong_is_refused_with_the_line(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        from_file(str(path))
    assert named in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_what_is_no_hostfile_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hosts"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError) as error:
        from_file(str(path))
    assert str(path) in str(error.value)
    assert "a text file" in str(error.value)


@given(st.lists(st.from_regex(r"[a-z]{1,4}[0-9]{1,3}", fullmatch=True), min_size=1, max_size=20, unique=True))
def test_what_is_folded_unfolds_to_the_same_hosts(given_names: list[str]) -> None:
    assert sorted(given_names) == sorted(names(from_set(fold(given_names))))


def test_simulated_hosts_have_loopback_addresses_of_their_own() -> None:
    found = simulated(300)
    assert len({host.address for host in found}) == 300
    assert all(host.address.startswith("127.") for host in found)
    assert "127.0.0.1" not in {host.address for host in found}


@pytest.mark.parametrize(
    "text",
    [
        f"gpu[1-{hosts.MOST_HOSTS + 1}]",
        "gpu[1-999999999]",
        "gpu[1-99999999999999999999999]",
        "r[1-999]n[1-999]",
        "gpu[1-2,1-999999999/3]",
        "gpu1!gpu[1-999999999]",
        "[1-999999999]",
        "gpu[1-60000],cpu[1-60000]",
    ],
)
def test_no_more_hosts_than_anybody_has(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the numbers: to unfold a thousand million names takes minutes and all memory there is."""
    made: list[str] = []

    def nodeset(part: str) -> list[str]:
        made.append(part)
        return [f"{part[:3]}{number}" for number in range(60000)]

    monkeypatch.setattr("ClusterShell.NodeSet.NodeSet", nodeset)
    path = tmp_path / "hosts"
    path.write_text(text.replace("],", "]\n"))
    for read in (lambda: from_set(text), lambda: from_file(str(path))):
        with pytest.raises(UsageError, match="at most 65536"):
            read()
    assert all("60000" in part for part in made)


@pytest.mark.parametrize(
    ("text", "count"), [("gpu[1-60000]", 60000), ("gpu[0-1000000/100]", 10001), ("n[00000000001-00000000002]", 2)]
)
def test_as_many_hosts_as_somebody_may_have(text: str, count: int) -> None:
    assert count == len(from_set(text))
