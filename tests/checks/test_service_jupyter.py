"""service.jupyter: whether a server is to run here, by what the files say; the servers are in tests/system."""

from typing import Any

import pytest

from probe.checks.service_jupyter import COMMAND, Server, _place, complaint, plain
from probe.model import Facts, Finding, Record, Status
from tests.checks.asking import Files, ask

CONTAINER = Facts(in_container=True)
FOLDER = "/home/u/.local/share/jupyter/runtime"
DEAD = {"file": f"{FOLDER}/jpserver-7.json", "pid": 7, "alive": False, "of_this_life": True, "token": "planted"}
ASKED = {"jupyter": (FOLDER,)}


def jupyter(
    *servers: dict[str, Any], path: str = "", pid1: str = "sleep infinity", code: int = 0, **more: Any
) -> Finding:
    """With runtime files of these servers, jupyter at `path`, and this command as pid 1."""
    said = [
        Record(f"jupyter:{FOLDER}", code=code, text="Permission denied", data={"servers": list(servers)}),
        Record("which:jupyter", code=0, data={"path": path}),
        Record("told:/", code=0, data={"commands": [["pid 1's command", pid1]]}),
    ]
    return ask("service.jupyter", *(("files", record) for record in said), **{"asked": ASKED, **more})


def test_what_is_not_installed_need_not_run() -> None:
    finding = jupyter(pid1="jupyter lab")
    assert (Status.SKIP, "not installed") == (finding.status, finding.summary)


def test_what_is_installed_and_was_told_by_nobody_need_not_run() -> None:
    finding = jupyter(path="/opt/conda/bin/jupyter")
    assert (Status.SKIP, "installed, not started") == (finding.status, finding.summary)


def test_what_pid_1_or_an_earlier_run_knows_of_must_run() -> None:
    told = jupyter(path="/bin/jupyter", pid1="tini -g -- start-notebook.py --IdentityProvider.token=planted")
    seen = jupyter(path="/bin/jupyter", seen_services=("service.jupyter",))
    for finding, by in ((told, "pid 1's command"), (seen, "an earlier run, which saw it")):
        assert (Status.FAIL, "not_running") == (finding.status, finding.data["reason"])
        assert by in finding.summary
        assert "planted" not in repr(finding)


def test_a_folder_that_cannot_be_read_may_hold_the_server_that_is_missed() -> None:
    finding = jupyter(path="/bin/jupyter", pid1="jupyter lab", code=13)
    assert (Status.UNKNOWN, "unread") == (finding.status, finding.data["reason"])


@pytest.mark.parametrize(
    ("facts", "server", "status"),
    [
        (CONTAINER, DEAD, Status.FAIL),
        (CONTAINER, {**DEAD, "of_this_life": False}, Status.SKIP),
        (Facts(), DEAD, Status.SKIP),  # on a host it may be any user's, who is done with it
    ],
    ids=["of this container", "of an earlier life", "on a host"],
)
def test_a_server_that_has_gone_is_missed_in_its_container(
    facts: Facts, server: dict[str, Any], status: Status
) -> None:
    finding = jupyter(server, path="/bin/jupyter", facts=facts)
    assert status is finding.status
    assert "planted" not in repr(finding)


TOLD = [
    "jupyter lab",
    "jupyter-lab --ip=0.0.0.0",
    "/opt/conda/bin/python3.12 /opt/conda/bin/jupyter-notebook",
    'sh -c "cd /w && exec jupyter notebook --no-browser"',
    "tini -g -- start-notebook.py",
    "/usr/local/bin/start-singleuser.sh --x",
    "jupyterhub-singleuser",
    "python -m jupyterlab",
    "python3 -m notebook --port 1",
    "systemctl start jupyter@ann.service",
]
NOT_TOLD = [
    "sleep infinity",
    "pip install jupyterlab",
    "python train.py --jupyter lab-1",
    "jupyter nbconvert x.ipynb",
    "jupyterhub",
    "/work/start-notebooks",
    "vim jupyter-lab.md",
]


@pytest.mark.parametrize(("command", "told"), [*((one, True) for one in TOLD), *((one, False) for one in NOT_TOLD)])
def test_a_command_that_starts_a_server_is_known(command: str, told: bool) -> None:
    assert told == (COMMAND.search(command) is not None)


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("", "/"),
        ("/", "/"),
        ("/test", "/test/"),
        ("test/", "/test/"),
        ("//evil.example/", "/evil.example/"),
        ("/a b/?x=1#y\r\nX: 1", "/a%20b/%3Fx=1%23y%0D%0AX:%201/"),
        ("/user/ann%40example/", "/user/ann%40example/"),
    ],
)
def test_a_base_url_is_a_path_and_nothing_else(base_url: str, expected: str) -> None:
    assert f"http://127.0.0.1:8888{expected}" == _place(Files(), Server(port=8888, base_url=base_url), "").url


@pytest.mark.parametrize("bad", ["http://u@h/", "http://h/?token=x", "http://h/#x", "file:///x", "h:8888", "http://"])
def test_a_url_with_more_than_a_place_in_it_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        plain(bad)


@pytest.mark.parametrize("place", ["", "url", "runtime_dir"])
def test_a_token_of_a_file_goes_to_nobody_in_particular_never(place: str) -> None:
    """Any user can leave a runtime file where Jupyter has them; a server that was named is somebody."""
    options = {"url": "", "runtime_dir": None, "token_file": "/token"}
    if place:
        options[place] = "/named"
    assert bool(place) == (complaint(options) == "")
    assert "" == complaint({**options, "token_file": None})
