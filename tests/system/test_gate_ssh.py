"""The gate over real sshds in namespaces: who cannot be reached or take part, each with a finding of its own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probe.report import gate as report_gate
from tests.system.command import Ran
from tests.system.lab import LEFT_S, Lab, LabHost, needed, sh, wait_for
from tests.system.saying import causes, clean, said, states

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    needed()
    lab = Lab(tmp_path_factory.mktemp("lab"), hosts=4)
    try:
        lab.make()
        yield lab
    finally:
        lab.remove()


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """All hosts well; and after the test nothing of the gate is left on any."""
    yield built
    wait_for(lambda: not built.left(), LEFT_S, f"processes left: {built.left()}")
    built.mend()


def reach(lab: Lab, *args: str, hosts: list[LabHost] | None = None) -> Ran:
    return lab.gate("--until", "reach", *args, hosts=hosts)


def test_hosts_that_answer_are_ready(lab: Lab) -> None:
    ran = reach(lab)
    assert (0, "ready", ["h1", "h2", "h3", "h4"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {host["facts"]["interface"] for host in said(ran)["hosts"]} == {"eth0"}


def test_each_failure_of_ssh_is_a_finding_of_its_own(lab: Lab) -> None:
    """Four at once: sshd stopped, key refused, host key changed, host key unknown. None of them hides another."""
    lab[1].stop()
    lab[2].start(keys="/dev/null")
    lab[3].key()
    lab[3].start()
    lab.forget(lab[4])
    ran = reach(lab)
    assert ran.code == 1
    assert {"SSH_REFUSED": ["h1"], "SSH_AUTH_FAILED": ["h2"], "SSH_HOST_KEY_CHANGED": ["h3"]} | {
        "SSH_HOST_KEY_UNKNOWN": ["h4"]
    } == causes(ran)
    assert said(ran)["verdict"] == "not_ready"


def test_one_of_them_leaves_the_others_ready(lab: Lab) -> None:
    lab[2].start(keys="/dev/null")
    ran = reach(lab, "--min-hosts", "3")
    assert (0, "ready_without", ["h1", "h3", "h4"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {"SSH_AUTH_FAILED": ["h2"]} == causes(ran)
    assert reach(lab, "--min-hosts", "4").code == 1


def test_a_host_whose_interface_is_down_is_unreachable_and_nobody_else(lab: Lab) -> None:
    lab[3].inside("ip", "link", "set", "eth0", "down")
    ran = reach(lab)
    assert (1, {"HOST_UNREACHABLE": ["h3"]}, ["h1", "h2", "h4"]) == (ran.code, causes(ran), clean(ran))


def test_what_is_missing_on_several_hosts_is_said_once(lab: Lab) -> None:
    """Another version on one, no probe on two: one cause for each, which names its hosts."""
    other = lab.folder / "other"
    ours = Path(report_gate.__file__).parents[1]
    shutil.copytree(ours, other / ours.name, ignore=shutil.ignore_patterns("__pycache__"))
    version = other / ours.name / "__init__.py"
    version.write_text(version.read_text().replace("__version__ = ", "__version__ = '0.0.1'  # "))
    lab[1].start(PYTHONPATH=str(other))
    for host in (lab[2], lab[3]):
        (host.folder / "probe").mkdir(exist_ok=True)
        (host.folder / "probe" / "__init__.py").write_text("raise ImportError('not this one')")
        host.start(PYTHONPATH=str(host.folder))
    ran = reach(lab)
    assert {"AGENT_OTHER_VERSION": ["h1"], "AGENT_NO_PROBE": ["h2", "h3"]} == causes(ran)
    (no_probe,) = [cause for cause in said(ran)["causes"] if cause["code"] == "AGENT_NO_PROBE"]
    assert no_probe["summary"].startswith("h[2-3]: ")
    assert clean(ran) == ["h4"]
    assert states(ran)["h1"] == "skewed"


def test_a_python_that_is_nowhere_is_one_cause(lab: Lab) -> None:
    ran = reach(lab, "--remote-python", "/nowhere/python")
    assert {"AGENT_NO_PYTHON": ["h1", "h2", "h3", "h4"]} == causes(ran)
    assert ran.code == 1


def test_a_login_shell_that_talks_is_no_hindrance(lab: Lab) -> None:
    (lab[1].folder / ".bashrc").write_text("echo Welcome to this host; echo noise >&2\n")
    try:
        assert reach(lab, hosts=[lab[1]]).code == 0
    finally:
        (lab[1].folder / ".bashrc").unlink()


def test_a_config_that_verifies_nothing_is_refused(lab: Lab) -> None:
    config = lab.folder / "config"
    config.write_text(config.read_text() + "Host *\n  UserKnownHostsFile none\n")
    argv = lab.argv("--until", "reach")
    at = argv.index("--known-hosts")
    del argv[at : at + 2]
    ran = lab.run(argv)
    assert ran.code == 2
    assert "UserKnownHostsFile none" in ran.err


def test_what_the_config_runs_for_a_host_and_hangs_is_that_host_s_alone(lab: Lab) -> None:
    """The others are reached meanwhile, and what it ran is not left behind."""
    config, hangs = lab.folder / "config", "sleep 86399"
    config.write_text(f'Match originalhost h2 exec "{hangs}"\n  Compression no\n' + config.read_text())
    ran = reach(lab, "--budget", "60s")
    assert (1, {"SSH_FAILED": ["h2"]}, ["h1", "h3", "h4"]) == (ran.code, causes(ran), clean(ran))
    assert "Match exec" in said(ran)["causes"][0]["summary"]
    assert sh("pgrep", "-xf", hangs, check=False) == ""


def test_hosts_behind_a_jump_host_are_reached_through_it(lab: Lab) -> None:
    """And one of them without sshd is named by what the jump host saw of it."""
    lab.behind(lab[4], *lab.hosts[:3])
    lab[2].stop()
    ran = reach(lab, hosts=lab.hosts[:3])
    assert (1, {"SSH_REFUSED": ["h2"]}, ["h1", "h3"]) == (ran.code, causes(ran), clean(ran))
    assert "from its jump host" in said(ran)["causes"][0]["summary"]


def no_sshd(lab: Lab) -> None:
    lab[4].stop()


def no_answer(lab: Lab) -> None:
    lab[4].beyond_reach()


def unknown(lab: Lab) -> None:
    lab.forget(lab[4])


def another_key(lab: Lab) -> None:
    lab[4].key()
    lab[4].start()


def no_login(lab: Lab) -> None:
    lab[4].start(keys="/dev/null")


def no_forwarding(lab: Lab) -> None:
    lab[4].start(options={"AllowTcpForwarding": "no"})


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (no_sshd, "JUMP_HOST_DOWN", "refuses the connection"),
        (no_answer, "JUMP_HOST_DOWN", "no connection within 10 s"),
        (unknown, "JUMP_HOST_KEY", "its host key is not known"),
        (another_key, "JUMP_HOST_KEY", "shows another host key"),
        (no_login, "JUMP_HOST_LOGIN", "does not accept the keys"),
        (no_forwarding, "JUMP_HOST_LOGIN", "forwards no connections"),
    ],
)
def test_a_jump_host_that_fails_is_one_cause_of_its_own(
    lab: Lab, fault: Callable[[Lab], None], code: str, words: str
) -> None:
    """For all hosts behind it; a host that is reached directly is ready."""
    lab.behind(lab[4], lab[1], lab[2])
    fault(lab)
    ran = reach(lab, hosts=lab.hosts[:3])
    assert (1, {code: ["h1", "h2"]}, ["h3"]) == (ran.code, causes(ran), clean(ran))
    (cause,) = said(ran)["causes"]
    assert cause["summary"].startswith("h[1-2]: ")
    assert "jump host" in cause["summary"]
    assert words in cause["summary"]
    assert {"h1": "unreachable", "h2": "unreachable", "h3": "ready"} == states(ran)


def test_two_faults_at_once_on_two_hosts(lab: Lab) -> None:
    """No torch on one; on another the folder for temporary files is full, which is said and keeps nobody out."""
    lab[2].start(PROBE_PYTHON="/usr/bin/python3")
    small = lab.folder / "small"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small))
    try:
        (small / "full").write_bytes(b"x" * 4096)
        lab[4].start(TMPDIR=str(small))
        ran = lab.gate()
    finally:
        wait_for(lambda: not lab.left(), LEFT_S, "processes left")
        sh("umount", str(small))
    assert (1, ["h1", "h3", "h4"]) == (ran.code, clean(ran))
    assert {"h1": "ready", "h2": "bad", "h3": "ready", "h4": "ready"} == states(ran)
    assert {"TORCH_MISSING": ["h2"], "DISK_FULL": ["h4"]}.items() <= causes(ran).items()
