"""What a host says of itself: what must be alike on all hosts of a job, or explains why some cannot talk to others.

Read from procfs, sysfs, the environment and socket ioctls only; nothing here opens a device. Standard library only,
Python >= 3.9.
"""

import fcntl
import os
import platform
import socket
import struct
from typing import Any

SIOCGIFADDR = 0x8915
FAMILIES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "UCX_", "FI_")
"""The variables that steer how a collective finds its way."""
NET = "/sys/class/net"
INFINIBAND = "/sys/class/infiniband"
MOST_VARIABLES = 64
NOWHERE = "192.0.2.1"
"""RFC 5737, for documentation: a datagram socket connected to it sends nothing and tells which way it would leave."""


def gather(ifname: str, given_address: str) -> "dict[str, Any]":
    """All facts; `ifname` and `given_address` are what the controller chose for this host, or empty."""
    interfaces = network()
    address = choose_address(ifname, given_address, interfaces)
    chosen = next((found["name"] for found in interfaces if found["address"] == address), "")
    if not chosen and address.startswith("127."):
        chosen = "lo"
    return {
        "hostname": socket.gethostname(),
        "machine": machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": len(visible_gpus()),
        "driver": _read("/sys/module/nvidia/version"),
        "environment": environment(),
        "interfaces": interfaces,
        "infiniband": infiniband(),
        "address": address,
        "interface": chosen,
        "mtu": next((found["mtu"] for found in interfaces if found["name"] == chosen), 0),
    }


def machine() -> str:
    """The same for two names of one machine: its boot and its network namespace."""
    try:
        namespace = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        namespace = 0
    return f"{_read('/proc/sys/kernel/random/boot_id')}/{namespace}"


def cpu_model() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()[:200]
    return platform.machine()


def visible_gpus() -> "list[str]":
    """The GPUs that CUDA would find here, as CUDA_VISIBLE_DEVICES names them; by device nodes, none is opened."""
    nodes = sum(name.startswith("nvidia") and name[6:].isdigit() for name in _names("/dev"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(nodes)]
    named = [word.strip() for word in visible.split(",")]
    return [word for word in named if word[:1].isdigit() or word.startswith(("GPU-", "MIG-"))][:nodes]


def environment() -> "dict[str, str]":
    names = sorted(name for name in os.environ if name.startswith(FAMILIES))[:MOST_VARIABLES]
    return {name: os.environ[name][:200] for name in names}


def choose_address(ifname: str, given: str, interfaces: "list[dict[str, Any]]") -> str:
    """Where the other hosts find this one: the wanted interface's, what was given, where ssh came in, the way out."""
    if ifname == "lo":
        return given or "127.0.0.1"
    if ifname:
        wanted = [found["address"] for found in interfaces if found["name"] == ifname and found["address"]]
        return wanted[0] if wanted else ""
    if given:
        return given
    came_in = os.environ.get("SSH_CONNECTION", "").split()
    if len(came_in) == 4 and not came_in[2].startswith(("127.", "::1")):
        return came_in[2]
    return way_out() or next((found["address"] for found in interfaces if found["address"]), "127.0.0.1")


def way_out() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        try:
            datagram.connect((NOWHERE, 9))
            return str(datagram.getsockname()[0])
        except OSError:
            return ""


def network() -> "list[dict[str, Any]]":
    """Every interface but lo: name, state, MTU, speed in Mb/s (0: it does not say) and IPv4 address."""
    found = []
    for name in sorted(_names(NET)):
        if name == "lo" or not os.path.isdir(NET + "/" + name):
            continue
        speed = _read(f"{NET}/{name}/speed")
        found.append(
            {
                "name": name,
                "state": _read(f"{NET}/{name}/operstate"),
                "mtu": _number(_read(f"{NET}/{name}/mtu")),
                "speed_mbps": max(0, _number(speed)),
                "address": ipv4(name),
            }
        )
    return found


def ipv4(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        try:
            packed = fcntl.ioctl(datagram.fileno(), SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
        except OSError:
            return ""
    return socket.inet_ntoa(packed[20:24])


def infiniband() -> "list[dict[str, Any]]":
    """Every port: its device, state, rate in Gb/s and whether it is InfiniBand or Ethernet (RoCE)."""
    found = []
    for device in sorted(_names(INFINIBAND)):
        for port in sorted(_names(f"{INFINIBAND}/{device}/ports")):
            folder = f"{INFINIBAND}/{device}/ports/{port}"
            found.append(
                {
                    "port": f"{device}:{port}",
                    "state": _read(folder + "/state").partition(": ")[2],
                    "rate_gbps": _number(_read(folder + "/rate").partition(" ")[0]),
                    "layer": _read(folder + "/link_layer"),
                }
            )
    return found


def _names(folder: str) -> "list[str]":
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(256).strip()
    except OSError:  # a veth or a virtual function has no speed: EINVAL
        return ""


def _lines(path: str) -> "list[str]":
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(text: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        return 0
