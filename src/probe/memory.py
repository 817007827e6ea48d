"""What a run takes from the last one and leaves for the next. Pure: values in, values out; `probe.state` keeps them."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from probe.model import BAD, Config, Facts, Outcome, Severity, Status
from probe.state import Leaving, State, TorchPass
from probe.torchfile import TorchSite
from probe.worker.parent import Survivor


def about(config: Config, facts: Facts, site: TorchSite | None, gpus: Sequence[str], env: Mapping[str, str]) -> str:
    """What a pass of rung 4 is a pass of: with anything of this changed, it says nothing.

    `gpus`: what the kernel's driver is bound to, and NVML's UUIDs of the first good run. NVML itself is asked later;
    `nvml.count` fails where one of those is gone.
    """
    torch = site and [site.python, site.version, site.git_version]
    asked = [env.get("CUDA_VISIBLE_DEVICES"), env.get("NVIDIA_VISIBLE_DEVICES")]
    return msgspec.json.encode([config.device, torch, facts.nodes, gpus, asked]).decode()


def rested(past: State, every_s: float, about_: str) -> dict[str, str]:
    """The checks whose pass in an earlier run still stands, each with the words for it."""
    found = past.torch_pass
    if found is None or found.about != about_ or not 0 <= (age_s := found.age_s()) < every_s:
        return {}
    words = f"passed {age_s / 60:.0f} min ago" if age_s >= 60 else f"passed {age_s:.0f} s ago"
    return dict.fromkeys(found.checks, words)


class Run(Struct, frozen=True):
    """What there is to remember of one."""

    outcomes: Sequence[Outcome]
    survivors: Sequence[Survivor]
    about: Callable[[Sequence[str]], str]
    """`about`, told NVML's UUIDs of the first good run, which may be this one."""
    whole: bool
    """No check of its profile was left out by request."""


def changes(past: State, run: Run) -> dict[str, object]:
    """The fields of the state that this run sets anew."""
    new: dict[str, object] = {}
    leaving = _leaving(run.survivors)
    known = {child.pid for child in leaving}
    still = tuple(child for child in past.leaving if child.there() and child.pid not in known)
    if leaving or still != past.leaving:
        new["leaving"] = still + leaving
    if not past.gpus and (uuids := _counted_gpus(run.outcomes)):
        new["gpus"] = uuids
    if (last := _last_of_the_kernel_log(run.outcomes)) > past.kernel_log:
        new["kernel_log"] = last
    if seen := _seen_services(run.outcomes) - set(past.services):
        new["services"] = (*past.services, *sorted(seen))
    if host_keys := {address: key for address, key in _host_keys(run.outcomes) if address not in past.host_keys}:
        new["host_keys"] = {**past.host_keys, **host_keys}
    torch_pass = _torch_pass(past, run)
    if torch_pass != past.torch_pass:
        new["torch_pass"] = torch_pass
    return new


def _leaving(survivors: Sequence[Survivor]) -> tuple[Leaving, ...]:
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return tuple(Leaving(child.pid, child.start_ticks, child.worker, child.target, now_s) for child in survivors)


def _counted_gpus(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    for outcome in outcomes:
        if outcome.id == "nvml.count" and outcome.status is Status.PASS:
            return tuple(str(outcome.data.get("uuids", "")).split(", "))
    return ()


def _last_of_the_kernel_log(outcomes: Sequence[Outcome]) -> int:
    """The sequence number up to which this run has read the kernel log; -1 where it has not."""
    found = [outcome.data.get("last_sequence") for outcome in outcomes if outcome.id == "device.xid"]
    return found[0] if found and isinstance(found[0], int) else -1


def _seen_services(outcomes: Sequence[Outcome]) -> set[str]:
    good = (Status.PASS, Status.WARN)
    return {outcome.id for outcome in outcomes if outcome.id.startswith("service.") and outcome.status in good}


def _host_keys(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
    for outcome in outcomes:
        wrong = outcome.data.get("reason") == "host_key"  # one that known_hosts refuses is not to be trusted later
        if outcome.id == "service.ssh" and "host_key_sha256" in outcome.data and not wrong:
            data = outcome.data
            yield str(data["address"]), f"{data['host_key_type']} SHA256:{data['host_key_sha256']}"


def _torch_pass(past: State, run: Run) -> TorchPass | None:
    """The pass on record after this run: a new one, the one before, or none, once anything critical is bad."""
    if any(outcome.status in BAD and outcome.severity is Severity.CRITICAL for outcome in run.outcomes):
        return None
    ended = _ended_in(run.outcomes, rung="torch")
    if not run.whole or Status.PASS not in ended.get("torch.tensor", ()):
        return past.torch_pass
    passed = tuple(sorted(check for check, statuses in ended.items() if statuses == {Status.PASS}))
    if ended["torch.tensor"] != {Status.PASS} or "torch.import" not in passed:
        return past.torch_pass
    gpus = past.gpus or _counted_gpus(run.outcomes)
    return TorchPass(int(time.clock_gettime(time.CLOCK_BOOTTIME)), passed, run.about(gpus))


def _ended_in(outcomes: Sequence[Outcome], rung: str) -> dict[str, Collection[Status]]:
    found: dict[str, set[Status]] = {}
    for outcome in outcomes:
        if outcome.id.partition(".")[0] == rung:
            found.setdefault(outcome.id, set()).add(outcome.status)
    return dict(found)
