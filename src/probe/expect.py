"""What this machine should have: GPUs or none, how many, and by whose word.

::

    gather (reads the machine) -> Facts -> expect (pure) -> Expectation

The first that says something decides: ``device``, ``gpus.expect``, the two variables by which containers and jobs are
given GPUs, then signs: device nodes, the driver's entry in ``/proc/devices``, a CUDA build of torch. Whether it is
there is the checks' question, and never asked here: a missing GPU must not make itself unexpected.
"""

import os
from collections.abc import Iterable, Mapping

from msgspec import structs

from probe.model import Expectation, Facts, Kind

MOST_LISTED = 1024
FEWER = "--gpus-expect 0"
OTHER = "--gpus-expect <n>"


def expect(facts: Facts) -> Expectation:
    """What should be here, from the first of the rules that says something."""
    expected = _by_setting(facts)
    if expected is None:
        expected = _by_variable(facts)
        if facts.device == "cuda" and not (expected and expected.gpus):
            expected = _at_least_one("device=cuda", "--device cpu")
    expected = expected or _by_sign(facts)
    return structs.replace(expected, rocm=bool(facts.torch_hip), wsl2=facts.dxg)


def _by_setting(facts: Facts) -> Expectation | None:
    if facts.device.partition(":")[0] == "cpu":
        return _none(f"device={facts.device}", "--device cuda", int(facts.device.partition(":")[2] or 1))
    expect_ = facts.gpus_expect
    if expect_ is None:
        return None
    if isinstance(expect_, tuple):
        return Expectation(
            Kind.LIST,
            count=len(expect_),
            uuids=expect_,
            more_is="warn",
            mig=any(uuid.startswith("MIG-") for uuid in expect_),
            reason=f"gpus.expect={','.join(expect_)}",
            how_to_say_otherwise=OTHER,
        )
    return _exactly(expect_, "gpus.expect", OTHER) if expect_ else _none("gpus.expect=0", OTHER)


def _by_variable(facts: Facts) -> Expectation | None:
    visible = (facts.nvidia_visible or "").strip()
    if visible == "none":
        return _none("NVIDIA_VISIBLE_DEVICES=none", OTHER)
    if facts.cuda_visible is not None and hides_all(facts.cuda_visible):
        return _none(f"CUDA_VISIBLE_DEVICES={_short(facts.cuda_visible) or '(set to nothing)'}", OTHER)
    if visible in ("", "void"):  # no word from the container runtime's hook; CDI, for one, sets void and gives GPUs
        return None
    reason = f"NVIDIA_VISIBLE_DEVICES={_short(visible)}"
    if names := listed(visible):
        mig = any(":" in name or name.startswith("MIG-") for name in names)
        # More are no failure: a privileged pod sees all of the host's, whatever it was given.
        return Expectation(Kind.EXACTLY, len(names), more_is="warn", mig=mig, reason=reason, how_to_say_otherwise=OTHER)
    return _at_least_one(reason, FEWER)


def _by_sign(facts: Facts) -> Expectation:
    if node := min(filter(_is_gpu_node, facts.nodes), key=_by_number, default=""):
        return _at_least_one(f"/dev/{node}", FEWER)
    if facts.driver_loaded and not facts.in_container:
        return _at_least_one("nvidia in /proc/devices", FEWER)
    if facts.torch_cuda:
        return _at_least_one(f"torch's build for CUDA {_short(facts.torch_cuda)}", f"{FEWER} or --device cpu")
    return _none("no sign of a GPU", "--gpus-expect <n> or --device cuda")


def _none(reason: str, otherwise: str, cpu_workers: int = 1) -> Expectation:
    return Expectation(Kind.NONE, reason=reason, how_to_say_otherwise=otherwise, cpu_workers=cpu_workers)


def _at_least_one(reason: str, otherwise: str) -> Expectation:
    return Expectation(Kind.AT_LEAST, 1, reason=reason, how_to_say_otherwise=otherwise)


def _exactly(count: int, setting: str, otherwise: str) -> Expectation:
    reason = f"{setting}={count}"
    return Expectation(Kind.EXACTLY, count, more_is="warn", reason=reason, how_to_say_otherwise=otherwise)


def hides_all(cuda_visible: str) -> bool:
    """Whether this CUDA_VISIBLE_DEVICES leaves no device: CUDA stops at the first entry that names none."""
    first = cuda_visible.partition(",")[0].strip()
    return not (first[:1].isdigit() or first.startswith(("GPU-", "MIG-")))


def listed(nvidia_visible: str) -> frozenset[str]:
    """What a list of indices, ranges (0-3), MIG instances (0:1) and UUIDs names; empty where it is no such list."""
    names: set[str] = set()
    for word in (word.strip() for word in nvidia_visible.split(",")):
        first, dash, last = word.partition("-")
        gpu, colon, instance = word.partition(":")
        if not word:
            continue  # a comma too many
        if _is_index(word):
            names.add(str(int(word)))
        elif dash and _is_index(first) and _is_index(last) and 0 <= int(last) - int(first) < MOST_LISTED:
            names.update(map(str, range(int(first), int(last) + 1)))
        elif (colon and _is_index(gpu) and _is_index(instance)) or _is_uuid(word):
            names.add(word)
        else:
            return frozenset()
    return frozenset(names)


def _is_index(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 6


def _is_uuid(word: str) -> bool:
    return word.startswith(("GPU-", "MIG-")) and word[4:].replace("-", "").replace("/", "").isalnum()


def _is_gpu_node(name: str) -> bool:
    """Nodes of a GPU and its driver; not of NVSwitches and capabilities, which machines without a GPU have too."""
    return name in ("nvidiactl", "nvidia-uvm") or (name.startswith("nvidia") and _is_index(name[6:]))


def _by_number(node: str) -> tuple[bool, str]:
    """A GPU's own node before the driver's: it says more."""
    return not _is_index(node[6:]), node


def _short(value: str) -> str:
    """Others' words in a sentence of ours."""
    text = value[:49] if value.isprintable() else ascii(value[:49])
    return text if len(text) < 49 else f"{text[:45]}..."


# --- reading the machine --------------------------------------------------------------------------------------------


# In the path of pid 1's cgroup: Docker, Kubernetes, containerd, Podman and CRI-O, LXC, Amazon ECS. With a cgroup
# namespace of its own (the default of cgroup v2) the path is "/" and says nothing: hence the other signs.
CGROUP_WORDS = ("docker", "kubepods", "containerd", "libpod", "crio", "/lxc", "/ecs/")
CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
CONTAINER_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")


def gather(
    env: Mapping[str, str],
    *,
    device: str = "auto",
    gpus_expect: int | tuple[str, ...] | None = None,
    torch_cuda: str | None = None,
    torch_hip: str | None = None,
    root: str = "",
) -> Facts:
    """The facts of this machine, or of the one under `root`. Opens no device node and waits for no driver."""
    names = _names(f"{root}/dev")
    return Facts(
        device=device,
        gpus_expect=gpus_expect,
        nvidia_visible=env.get("NVIDIA_VISIBLE_DEVICES"),
        cuda_visible=env.get("CUDA_VISIBLE_DEVICES"),
        nodes=tuple(sorted(name for name in names if name.startswith("nvidia"))),
        driver_loaded=_names_nvidia(_read(f"{root}/proc/devices")),
        in_container=_in_container(env, root),
        torch_cuda=torch_cuda,
        torch_hip=torch_hip,
        dxg="dxg" in names,
    )


def bound_gpus(root: str = "") -> tuple[str, ...]:
    """The PCI addresses that the kernel's driver is bound to, as sysfs shows them; none where it is not mounted."""
    return tuple(sorted(name for name in _names(f"{root}/sys/bus/pci/drivers/nvidia") if ":" in name))


def _names(folder: str) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ()


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return ""


def _names_nvidia(proc_devices: str) -> bool:
    """Lines are ``195 nvidia``, ``195 nvidiactl``, ``195 nvidia-frontend``, ``511 nvidia-uvm``."""
    return any(line.split()[1].startswith("nvidia") for line in proc_devices.splitlines() if len(line.split()) == 2)


def _in_container(env: Mapping[str, str], root: str) -> bool:
    if any(env.get(name) for name in CONTAINER_VARIABLES):
        return True
    if any(os.path.exists(root + path) for path in CONTAINER_FILES):
        return True
    cgroup = _read(f"{root}/proc/1/cgroup")
    return any(word in cgroup for word in CGROUP_WORDS)
