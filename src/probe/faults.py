"""Outcomes -> causes: what is wrong, which outcomes follow from it, what mends it and whose job that is.

::

    outcome -> its fault            the catalogue's entry that names most of its evidence
    outcomes, heaviest first        critical before advisory, then the fault's priority; the rung only breaks ties
    each is the consequence of the first before it whose fault explains it, or else a root
    roots of one fault -> Cause     folded over GPUs, with all that follows from them

The catalogue is data, ``faults.toml``; it is read only when something is wrong. A code there may hold the name of a
data key, ``CUDA_INIT_{cuda_code}``: it stands for one fault for each value seen.

Over 300 lines, since reading the catalogue and judging by it share one small vocabulary.
"""

import os.path
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from msgspec import Struct, convert
from msgspec.structs import replace

from probe.model import EVERY_GPU, PROBLEMS, Cause, Outcome, Profile, Reference, Scalar, Severity, Status, Who

RUNGS = ("device", "nvml", "cuda", "torch", "service")
ANY = ("*",)
BAD = ("fail", "timeout")


class When(Struct, frozen=True):
    """One pattern of evidence: all of it must hold."""

    check: tuple[str, ...]
    target: tuple[str, ...]
    status: tuple[str, ...]
    summary: str
    data: Mapping[str, tuple[Scalar, ...]]

    @property
    def weight(self) -> tuple[int, bool]:
        """How specific it is: more evidence beats less, values beat mere keys, a check named beats a glob."""
        evidence = sum(1 if wanted == ANY else 2 for wanted in self.data.values())
        return evidence + (self.target != ANY) + bool(self.summary), not any("*" in glob for glob in self.check)

    def holds(self, outcome: Outcome) -> bool:
        return (
            outcome.status.value in self.status
            and _any(outcome.id, self.check)
            and _any(outcome.target, self.target)
            and all(_any(outcome.data.get(key), wanted) for key, wanted in self.data.items())
            and re.search(self.summary, outcome.summary) is not None
        )


class Fault(Struct, frozen=True):
    """An entry of the catalogue."""

    code: str
    title: str
    priority: int
    remedy: str
    """First a sentence of at most 90 characters that can stand alone."""
    who: Who
    source: str
    when: tuple[When, ...]
    explains: tuple[str, ...] = ()
    """Checks whose problems follow from this one: of the same target where the evidence is one GPU's, else of all."""
    explains_node: tuple[str, ...] = ()
    """The same for checks of the whole node, where the evidence is one GPU's: one lost GPU makes the count low."""
    per_check: bool = False
    """Each check that ends so is a cause of its own."""


class UnknownFault(KeyError):
    """No fault has this code; the message names the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Case(Struct, frozen=True):
    """A problem outcome, with its fault and its place in the order of blame."""

    outcome: Outcome
    fault: Fault
    rank: tuple[int, int, int, int]


def diagnose(outcomes: Iterable[Outcome], profile: Profile = Profile.READINESS) -> tuple[Cause, ...]:
    """The causes of all problems in `outcomes`, the one to mend first in front; each problem is in exactly one.

    In liveness what a restart of the container mends goes first, since nothing else counts there.
    """
    outcomes = tuple(outcomes)
    if not any(outcome.status in PROBLEMS for outcome in outcomes):
        return ()
    cases = sorted(_cases(outcomes, profile), key=lambda case: case.rank)
    roots = _roots(cases)
    groups: dict[tuple[str, str], list[_Case]] = {}
    for case in cases:
        if roots[_name(case.outcome)] is case:
            groups.setdefault((case.fault.code, case.outcome.id if case.fault.per_check else ""), []).append(case)
    followers = {name: root for name, root in roots.items() if name != _name(root.outcome)}
    followers |= _skipped(outcomes, roots)
    total = len({outcome.target for outcome in outcomes if _one_gpu(outcome.target)})
    return tuple(_cause(evidence, followers, total) for evidence in groups.values())


def _cases(outcomes: tuple[Outcome, ...], profile: Profile) -> Iterable[_Case]:
    for number, outcome in enumerate(outcomes):
        if outcome.status not in PROBLEMS:
            continue
        fault = recognise(outcome)
        weight = _weight(outcome)
        if profile is Profile.LIVENESS and fault.who is Who.CONTAINER_RESTART:
            weight -= 1
        rung = outcome.id.partition(".")[0]
        place = RUNGS.index(rung) if rung in RUNGS else len(RUNGS)
        yield _Case(outcome, fault, (weight, -fault.priority, place, number))


def _weight(outcome: Outcome) -> int:
    critical = outcome.severity is Severity.CRITICAL
    if outcome.status in (Status.FAIL, Status.TIMEOUT):
        return 0 if critical else 2
    if outcome.status is Status.UNKNOWN:
        return 1 if critical else 3
    return 2


def recognise(outcome: Outcome) -> Fault:
    """The fault of one problem outcome: the entry with the most specific evidence that holds, then priority."""
    found = [
        (when.weight, fault.priority, fault) for fault in catalogue() for when in fault.when if when.holds(outcome)
    ]
    fault = max(found, key=lambda entry: entry[:2])[2]
    return _filled(fault, outcome.data) if "{" in fault.code else fault


def _roots(cases: list[_Case]) -> dict[Reference, _Case]:
    """For each case, by name, the case that it follows from in the end: itself for a root."""
    roots: dict[Reference, _Case] = {}
    for number, case in enumerate(cases):
        before = (earlier for earlier in cases[:number] if _explains(earlier, case))
        first = next(before, None)
        roots[_name(case.outcome)] = roots[_name(first.outcome)] if first else case
    return roots


def _explains(earlier: _Case, later: _Case) -> bool:
    """Whether `later` follows from `earlier`: only what was observed, or never answered, explains anything."""
    if earlier.fault.code == later.fault.code or earlier.outcome.status not in (Status.FAIL, Status.TIMEOUT):
        return False
    check, gpu, target = later.outcome.id, _about(earlier.outcome), _about(later.outcome)
    if not _one_gpu(gpu) or target == gpu:
        return _any(check, earlier.fault.explains)
    return not _one_gpu(target) and _any(check, earlier.fault.explains_node)


def _about(outcome: Outcome) -> str:
    """What it is evidence about: its target, or the GPU that one outcome of the whole node names in its data."""
    return outcome.target or str(outcome.data.get("gpu", ""))


def _skipped(outcomes: tuple[Outcome, ...], roots: Mapping[Reference, _Case]) -> dict[Reference, _Case]:
    """The root behind each skip that names a check which did not pass, also through that one's own skip."""
    followers: dict[Reference, _Case] = {}
    waiting = {_name(outcome): _needs(outcome) for outcome in outcomes if outcome.status is Status.SKIP}
    found = True
    while found and waiting:
        known = {**roots, **followers}
        now = {name: root for name, need in waiting.items() if (root := _behind(name.target, need, known)) is not None}
        followers |= now
        waiting = {name: need for name, need in waiting.items() if name not in now}
        found = bool(now)
    return followers


NEEDS = re.compile(r"needs ([a-z]+\.[\w.-]+)|not started: .*\((device\.stuck)\)")


def _needs(outcome: Outcome) -> str:
    """The check that a skip names: the engine says ``needs nvml.reach``, or what it left alone for ``device.stuck``."""
    found = NEEDS.fullmatch(outcome.summary)
    return found[1] or found[2] if found else ""


def _behind(target: str, need: str, known: Mapping[Reference, _Case]) -> _Case | None:
    for where in (target, "", EVERY_GPU):
        if (root := known.get(Reference(need, where))) is not None:
            return root
    if _one_gpu(target):
        return None
    return next((root for name, root in known.items() if name.id == need), None)  # it needs one of every GPU


def _cause(evidence: list[_Case], followers: Mapping[Reference, _Case], total: int) -> Cause:
    fault = evidence[0].fault
    names = tuple(_name(case.outcome) for case in evidence)
    following = tuple(name for name, root in followers.items() if _name(root.outcome) in names)
    return Cause(fault.code, _summary(evidence, total), fault.remedy, fault.who, names + following)


def _summary(evidence: list[_Case], total: int) -> str:
    """What the heaviest evidence says; over several GPUs with their number and, unless it is all, their names."""
    first = evidence[0].outcome
    gpus = list(dict.fromkeys(case.outcome.target for case in evidence if _one_gpu(case.outcome.target)))
    if not _one_gpu(first.target) or total < 2:
        return first.summary
    if len(gpus) == total:
        return f"{total} of {total} GPUs: {first.summary}"
    names = ", ".join(gpu.partition(":")[2] for gpu in gpus)
    return f"{names} ({len(gpus)} of {total} GPUs): {first.summary}"


def _name(outcome: Outcome) -> Reference:
    return Reference(outcome.id, outcome.target)


def _one_gpu(target: str) -> bool:
    return target.startswith("gpu:") and target != EVERY_GPU


def _any(value: Scalar, wanted: tuple[Scalar, ...]) -> bool:
    """Whether `value` is, or matches as a glob, one of `wanted`; ``*`` is any value that is there."""
    if value is None:
        return False
    return any(value == one or (isinstance(one, str) and fnmatchcase(str(value), one)) for one in wanted)


@cache
def catalogue() -> tuple[Fault, ...]:
    """All faults of ``faults.toml``, in its order. Raises ValueError where two have the same code."""
    import tomllib  # 6 ms that a healthy run does not pay

    with open(os.path.join(os.path.dirname(__file__), "faults.toml"), "rb") as file:
        tables = tomllib.load(file)
    faults = tuple(fault for entry in tables["fault"] for fault in _expanded(entry, tables["group"]))
    codes = [fault.code for fault in faults]
    if twice := {code for code in codes if codes.count(code) > 1}:
        raise ValueError(f"faults.toml: more than one fault is called {', '.join(sorted(twice))}")
    return faults


def _expanded(entry: dict[str, Any], groups: Mapping[str, list[str]]) -> Iterable[Fault]:
    """One fault, or one for each value of its ``each.<key>``, which is then evidence too."""
    each = entry.pop("each", {})
    key, values = next(iter(each.items()), ("", [None]))
    for value in values:
        patterns = [{**pattern, key: value} if key else pattern for pattern in entry["when"]]
        fields = {
            "remedy": " ".join(entry["remedy"].split()),
            "explains": [glob for name in entry.get("explains", ()) for glob in _group(name, groups)],
            "when": [_when(pattern) for pattern in patterns],
        }
        fault = convert({**entry, **fields}, Fault)
        yield _filled(fault, {key: value}) if key else fault


def _group(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    return groups[name[1:]] if name.startswith("@") else [name]


def _when(pattern: Mapping[str, Any]) -> When:
    parts = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in pattern.items()}
    return When(
        check=parts.pop("check", ANY),
        target=parts.pop("target", ANY),
        status=parts.pop("status", BAD),
        summary=parts.pop("summary", ("",))[0],
        data=parts,
    )


def _filled(fault: Fault, data: Mapping[str, Scalar]) -> Fault:
    def fill(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda hole: str(data.get(hole[1], hole[0])), text)

    return replace(fault, code=fill(fault.code), title=fill(fault.title), remedy=fill(fault.remedy))


def explain(code: str) -> str:
    """What ``probe explain CODE`` prints, in whatever case the code is. Raises `UnknownFault`, naming the nearest."""
    fault = _named(code)
    evidence = "\n".join(f"  {_described(when)}" for when in fault.when)
    then = ", ".join(dict.fromkeys(fault.explains + fault.explains_node))
    return (
        f"{fault.code}: {fault.title}\n\n"
        f"Remedy ({fault.who.value}): {fault.remedy}\n\n"
        f"Recognised by\n{evidence}\n"
        + (f"Explains problems of {then}\n" if then else "")
        + f"Priority {fault.priority}; source: {fault.source}\n"
    )


def _named(code: str) -> Fault:
    wanted = code.upper()  # no two codes differ in case only
    for fault in catalogue():
        if fault.code.upper() == wanted:
            return fault
    for fault in catalogue():
        if "{" not in fault.code:
            continue
        shape = re.sub(r"\{(\w+)\}", r"(?P<\1>-?[0-9]+)", fault.code)  # signals are listed, each by its name
        if found := re.fullmatch(shape, wanted):
            return _filled(fault, found.groupdict())
    import difflib  # only for this complaint

    known = [fault.code for fault in catalogue()]
    near = difflib.get_close_matches(wanted, known, n=3) or known[:3]
    raise UnknownFault(f"no fault is called {code!r}; the nearest are {', '.join(near)}")


def _described(when: When) -> str:
    parts = [f"{' or '.join(when.check)} ends in {' or '.join(when.status)}"]
    if when.target != ANY:
        parts.append("for one GPU")
    for key, wanted in when.data.items():
        parts.append(f"has {key}" if wanted == ANY else f"{key} is {' or '.join(map(str, wanted))}")
    if when.summary:
        parts.append(f"says /{when.summary}/")
    return ", ".join(parts)


def listing() -> str:
    """What ``probe explain`` prints: every code with its title, the heaviest faults first."""
    faults = sorted(catalogue(), key=lambda fault: -fault.priority)
    width = max(len(fault.code) for fault in faults)
    return "".join(f"{fault.code:<{width}}  {fault.title}\n" for fault in faults)
