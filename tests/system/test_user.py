"""As a user without rights, on a root that cannot be written: what hardened pods give a health check."""

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import probe as package
from tests.system.command import Command

pytestmark = pytest.mark.system

NOBODY = 65534
NEEDED = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(package.__file__).resolve().parents[1]}
READ_ONLY = """
for mount in / /tmp /run /var /home /dev/shm; do
    if mountpoint -q "$mount"; then mount -o remount,bind,ro "$mount" || exit 125; fi
done
"""
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
BARE = {"HOME": "/nonexistent", "TMPDIR": None, "XDG_RUNTIME_DIR": None, "XDG_CONFIG_HOME": None, "USER": None}


def closed_above(path: Path) -> Path | None:
    """The first folder above `path` that only its owner may pass, as /root is."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def opened(needed: Iterable[Path], stage: Path) -> str:
    """Shell lines that lay `needed` where everybody reaches it, under its own name, in this mount namespace."""
    closed = {path: folder for path in needed if (folder := closed_above(path))}
    lines = []
    for number, path in enumerate(closed):
        (stage / str(number)).mkdir(parents=True)
        lines.append(f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(stage / str(number)))}")
    lines += [f"mount -t tmpfs -o mode=0755 none {shlex.quote(str(folder))}" for folder in sorted(set(closed.values()))]
    for number, path in enumerate(closed):
        place = shlex.quote(str(path))
        lines.append(f"mkdir -p {place} && mount --bind {shlex.quote(str(stage / str(number)))} {place}")
    return "set -e\n" + "\n".join(lines) + "\n"


def as_nobody(argv: list[str], stage: Path, more: str = "") -> list[str]:
    """The words that run `argv` as nobody, in a mount namespace where nobody can read Python and probe."""
    script = opened(sorted(NEEDED), stage) + more + f'exec {" ".join(AS_NOBODY)} "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv]


WRITABLE = "mount -t tmpfs -o mode=1777 none /mnt\n"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("writable", [False, True], ids=["nothing writable", "TMPDIR writable"])
def test_nobody_on_a_read_only_root_passes(probe: Command, tmp_path: Path, form: str, writable: bool) -> None:
    """All CPU rungs pass, exit code 0, and of the state there is one line on stderr at most."""
    script = READ_ONLY + WRITABLE * writable
    env = {**BARE, "TMPDIR": "/mnt" if writable else None}
    ran = probe.run(as_nobody(probe.check_argv("--format", form), tmp_path / "stage", script), env=env, cwd="/")
    assert ran.code == 0, ran
    if form == "json":
        assert ran.status("torch.tensor") == "pass"
    elif writable:
        assert ran.first_line.startswith("healthy: CPU computed exactly")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("probe: state not kept: ")


def test_the_state_that_nobody_can_make_does_not_stop_the_commands_about_it(probe: Command, tmp_path: Path) -> None:
    """`probe state` says why, in a line and with its exit code; `probe config` needs none."""
    python = probe.check_argv()[0]
    words = [python, "-m", "probe", "state", "--state", str(probe.state)]
    ran = probe.run(as_nobody(words, tmp_path / "stage", READ_ONLY), env=BARE, cwd="/")
    assert ran.code == 3
    assert ran.err.count("\n") == 1
    ran = probe.run(as_nobody([python, "-m", "probe", "config"], tmp_path / "again", READ_ONLY), env=BARE, cwd="/")
    assert (ran.code, ran.err) == (0, "")


def test_nobody_has_a_folder_of_its_own(probe: Command, tmp_path: Path) -> None:
    """Where it can be written it is made, 0700 and the user's; a second run finds it."""
    place = Path(f"/tmp/probe-test-{os.getpid()}")
    place.mkdir()
    try:
        place.chmod(0o777)
        for attempt in ("first", "second"):
            argv = [*probe.check_argv("--only", "device.stuck"), "--state", str(place / "state")]
            ran = probe.run(as_nobody(argv, tmp_path / attempt), env=BARE, cwd="/")
            assert (ran.code, ran.err) == (0, "")
        made = (place / "state").stat()
        assert (made.st_mode & 0o7777, made.st_uid) == (0o700, NOBODY)
    finally:
        if (place / "state").exists():
            (place / "state").rmdir()
        place.rmdir()
