"""What is written for callers is right by the callers' own rules, and gives probe the time that it takes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from probe.checks import load as load_checks
from probe.commands import check
from probe.config import SETTINGS, load
from tests.docker.image import REPOSITORY
from tests.system.command import missing

DOCKER = REPOSITORY / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
PROBE = "/usr/local/bin/probe"
SLURM_S = {"prolog.sh": 90.0, "health.sh": 60.0}
"""PrologEpilogTimeout as the documentation has it; slurmd's own for HealthCheckProgram."""
UNITS = {"s": 1, "m": 60}


def tool(name: str) -> str:
    """One that is installed beside this Python."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        missing(f"{name} (make test installs it)")
    return str(path)


def ran(*argv: str) -> tuple[int, str]:
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout + found.stderr


def changed(source: Path, folder: Path, old: str, new: str) -> str:
    """A copy with something wrong in it."""
    text = source.read_text()
    assert old in text
    copy = folder / source.name
    copy.write_text(text.replace(old, new))
    return str(copy)


def test_a_linter_finds_nothing_wrong_with_the_whole_dockerfile() -> None:
    """With the flag that the engine of the other tests does not know."""
    file = DOCKER / "Dockerfile"
    assert "--start-interval=10s" in file.read_text()
    assert ran(tool("hadolint"), "--no-color", str(file)) == (0, "")


@pytest.mark.parametrize("wrong", ["--start-intervall=10s", "--start-interval=10q"])
def test_that_linter_knows_the_flags_of_a_health_check(tmp_path: Path, wrong: str) -> None:
    code, said = ran(tool("hadolint"), changed(DOCKER / "Dockerfile", tmp_path, "--start-interval=10s", wrong))
    assert code == 1
    assert "HEALTHCHECK" in said or "flag" in said or "expecting" in said


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_the_schema_that_kubernetes_publishes(path: Path) -> None:
    code, said = ran(tool("kubernetes-validate"), "--strict", str(path))
    assert (code, "passed" in said) == (0, True), said


@pytest.mark.parametrize(("old", "new"), [("timeoutSeconds", "timeoutSecond"), (": 61", ": 61s")])
def test_that_validator_refuses_what_is_no_field(tmp_path: Path, old: str, new: str) -> None:
    code, said = ran(
        tool("kubernetes-validate"), "--strict", changed(DOCKER / "kubernetes" / "server.yaml", tmp_path, old, new)
    )
    assert code == 1
    assert "did not validate" in said


@pytest.mark.system
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Of keys that it does not know it only warns, so it may say nothing at all of ours."""
    here = str(Path(sys.executable).with_name("probe")).replace(" ", "\\x20")
    for unit in (DOCKER / "systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROBE, here))
    assert verified(tmp_path) == []
    timer = tmp_path / "gpu-probe.timer"
    timer.write_text(timer.read_text().replace("OnBootSec", "OnBoottSec"))
    assert len(verified(tmp_path)) == 1


def verified(folder: Path) -> list[str]:
    if not shutil.which("systemd-analyze"):
        missing("systemd-analyze (apt-get install systemd)")
    _, said = ran("systemd-analyze", "verify", *map(str, sorted(folder.iterdir())))
    return [line for line in said.splitlines() if "gpu-probe" in line]


def test_node_problem_detector_is_told_what_it_takes() -> None:
    """Its own rules: no rule outlasts the plugin's timeout, 80 bytes of output, CamelCase reasons, an initial state."""
    given = json.loads((DOCKER / "node-problem-detector" / "gpu-probe.json").read_text())
    (condition,), (rule,) = given["conditions"], given["rules"]
    assert (given["plugin"], rule["type"], rule["condition"]) == ("custom", "permanent", condition["type"])
    assert seconds(rule["timeout"]) <= seconds(given["pluginConfig"]["timeout"])
    assert given["pluginConfig"]["max_output_length"] == 80
    assert all(re.fullmatch("([A-Z][A-Za-z]*)+", words["reason"]) for words in (condition, rule))


def test_what_node_problem_detector_runs_fits_its_message(state: Path) -> None:
    """One line of at most 80 bytes, and no code of a plugin in error: on the machine of the tests all is well."""
    (rule,) = json.loads((DOCKER / "node-problem-detector" / "gpu-probe.json").read_text())["rules"]
    code, said = ran(tool("probe"), *rule["args"], "--device", "cpu", "--state", str(state), "--log", "off")
    assert code == 0
    assert said.count("\n") == 1
    assert len(said.strip().encode()) <= 80


def test_what_systemd_runs_leaves_metrics_and_a_verdict_for_the_journal(state: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "probe.prom"
    (words,) = re.findall("(?m)^ExecStart=(.*)", (DOCKER / "systemd" / "gpu-probe.service").read_text())
    _, *args = shlex.split(words.replace("/var/lib/prometheus/node-exporter/probe.prom", str(metrics)))
    code, said = ran(tool("probe"), *args, "--device", "cpu", "--state", str(state), "--log", "off")
    assert code == 0
    assert said.startswith(("healthy: ", "degraded: "))
    assert "gpuprobe_ready 1" in metrics.read_text().splitlines()


def callers() -> Iterator[tuple[str, list[str], float]]:
    """Who, the command, and after how many seconds the caller ends it."""
    (timeout, command) = re.findall(r"--timeout=(\d+s).*?CMD (\[.*\])", (DOCKER / "Dockerfile").read_text(), re.DOTALL)[
        0
    ]
    yield "Docker", json.loads(command), seconds(timeout)
    for path in MANIFESTS:
        for container in (one for manifest in yaml.safe_load_all(path.read_text()) for one in containers(manifest)):
            for name in PROBES:
                if found := container.get(name):
                    yield f"{path.name} {name}", found["exec"]["command"], found["timeoutSeconds"]
    (rule,) = json.loads((DOCKER / "node-problem-detector" / "gpu-probe.json").read_text())["rules"]
    yield "node-problem-detector", [rule["path"], *rule["args"]], seconds(rule["timeout"])
    unit = dict(
        line.split("=", 1)
        for line in (DOCKER / "systemd" / "gpu-probe.service").read_text().splitlines()
        if line.startswith(("ExecStart=", "TimeoutStartSec="))
    )
    yield "systemd", shlex.split(unit["ExecStart"]), float(unit["TimeoutStartSec"])
    for name, limit_s in SLURM_S.items():
        script = (DOCKER / "slurm" / name).read_text()
        (words,) = re.findall(r'"\$PROBE" (check .*)\)', script)
        yield f"Slurm {name}", [PROBE, *shlex.split(words)], limit_s - 4 * script.count("timeout 4 ")


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    pod = manifest["spec"].get("template", {}).get("spec", {"containers": ()})
    return [*pod.get("initContainers", ()), *pod["containers"]]


def seconds(text: str) -> float:
    return float(text[:-1]) * UNITS[text[-1]]


def parsed(argv: list[str]) -> dict[str, Any]:
    """The flags of a `probe check`, which must be right."""
    assert Path(argv[0]).name == "probe"
    assert argv[1] == "check"
    return dict(check.make_context("probe check", argv[2:]).params)


def budget_s(argv: list[str]) -> float:
    given = parsed(argv)
    flags = {setting.name: str(value) for setting in SETTINGS if (value := given.get(setting.name)) is not None}
    return load(flags, {}, load_checks()).config.budget_s


@pytest.mark.parametrize(
    ("command", "limit_s"),
    [pytest.param(command, limit_s, id=who) for who, command, limit_s in callers()],
)
def test_a_caller_waits_longer_than_probe_takes(command: list[str], limit_s: float) -> None:
    """Else it would kill the check, and throw the verdict away."""
    assert budget_s(command) + 1 <= limit_s


def test_the_three_probes_of_kubernetes_ask_what_each_may_answer() -> None:
    """Liveness by its own profile only: another one would restart containers for what no restart mends."""
    (server,) = containers(yaml.safe_load((DOCKER / "kubernetes" / "server.yaml").read_text()))
    asked = {name: parsed(server[name]["exec"]["command"]) for name in PROBES}
    assert [asked[name]["profile"] for name in PROBES] == ["startup", None, "liveness"]
    assert {given["exit_codes"] for given in asked.values()} == {"k8s"}


def test_the_job_with_a_gate_says_the_same_wherever_it_says_it_twice() -> None:
    """Kubernetes checks none of it: names by which pods find each other, and how many there are."""
    service, job = yaml.safe_load_all((DOCKER / "kubernetes" / "gate.yaml").read_text())
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    assert {name} == {service["metadata"]["name"], pod["subdomain"], *service["spec"]["selector"].values()}
    assert service["spec"]["publishNotReadyAddresses"]
    gate, train = containers(job)
    assert all(gate[key] == train[key] for key in ("image", "env", "resources", "securityContext"))
    env = {one["name"]: one["value"] for one in gate["env"]}
    assert {env["NODES"]} == {str(job["spec"][key]) for key in ("completions", "parallelism")}
    assert env["GPUS"] == str(gate["resources"]["limits"]["nvidia.com/gpu"])
    assert {f"{name}-0.{name}:29500"} == set(re.findall(r"\S+:29500", " ".join(train["command"])))
    assert "$$" not in " ".join([*gate["command"], *train["command"]])  # the kubelet makes one of it


def commands_of_the_documentation() -> list[str]:
    """Every `probe check` in docs/callers.md, in prose too."""
    text = (REPOSITORY / "docs" / "callers.md").read_text()
    return re.findall(r"(?:^|`|exec )((?:/usr/local/bin/)?probe check [^`&:\n]*)", text, re.MULTILINE)


def test_every_command_of_the_documentation_is_one() -> None:
    found = commands_of_the_documentation()
    assert len(found) > 2
    for command in found:
        parsed(shlex.split(command))
