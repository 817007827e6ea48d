"""Which flags go with which hosts."""

import pytest

from probe.cluster import targets
from probe.cluster.hosts import Host
from probe.cluster.targets import NAMES, Named
from probe.config import UsageError

NOTHING = {**dict.fromkeys(NAMES), "identity": ()}
GIVEN = {
    "ssh_user": "x",
    "ssh_port": 22,
    "identity": ("key",),
    "known_hosts": "file",
    "ssh_config": "none",
    "remote_python": "/opt/python",
}


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_that_would_be_ignored_is_refused(launcher: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these Slurm's nodes heed the Python only."""
    monkeypatch.setattr(targets, "_slurm", lambda given: given["remote_python"])
    given, found = {**NOTHING, name: GIVEN[name]}, Named(launcher, (Host("n1"),))
    if (launcher, name) == ("slurm", "remote_python"):
        assert "/opt/python" == targets.prepared(found, given, 120.0).slurm
        return
    with pytest.raises(UsageError, match="n1 is reached") as error:
        targets.prepared(found, given, 120.0)
    assert f"--{name.replace('_', '-')}" in str(error.value)
