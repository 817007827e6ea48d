"""Configuration, expectations and the registry make the plan. Pure: the same values give the same plan."""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from msgspec.structs import replace

from probe.model import EVERY_GPU, Check, CheckSettings, Config, Expectation, Job, Plan, Severity

NOT_INSTALLED = "torch not installed"
NO_GPU = "no GPU expected"


def make(
    config: Config,
    expected: Expectation,
    checks: Mapping[str, Check],
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    torch_missing: str = "",
    rested: Mapping[str, str] | None = None,
) -> Plan:
    """The jobs of one run.

    `only` and `skip` hold ids, rungs or globs, each of which `selects` something (the CLI has made sure). Needs of
    what `only` selects run too, unreported. `torch_missing` says where torch was looked for in vain; empty: found.
    `rested`: of which checks an earlier pass still stands, and the words for it.
    """
    profile = {check.id: check for check in checks.values() if config.profile in check.profiles}
    wanted = {name for name in profile if not only or selects(only, name)}
    planned = wanted | _needs_of(wanted, profile)
    # a model imports torch anyhow: as a check of its own, that is not counted against the model's `timeout`
    others = [name for name in wanted if profile[name].rung != "torch" and config.check(name).enabled is not False]
    imported = {need for name in others for need in profile[name].needs}
    jobs = []
    for name, check in profile.items():
        if name not in planned:
            continue
        settings = config.check(name)
        reason = "skipped by --skip" if selects(skip, name) else _inapplicable(check, settings, expected, torch_missing)
        job = _job(check, check.severity_in(config.profile), settings, reason, reported=name in wanted)
        if not reason and rested and name in rested and name not in imported:
            job = replace(job, skip=rested[name], required=False)  # the pass that is demanded is on record
        jobs.append(job)
    run = {job.id for job in jobs if not job.skip}
    return Plan(
        profile=config.profile,
        jobs=tuple(replace(job, needs=tuple(need for need in job.check.needs if need in run)) for job in jobs),
    )


def selects(patterns: Iterable[str], check_id: str) -> bool:
    """Whether an id, a rung or a glob among `patterns` means this check."""
    rung = check_id.partition(".")[0]
    return any(pattern in (check_id, rung) or fnmatchcase(check_id, pattern) for pattern in patterns)


def _needs_of(wanted: set[str], profile: Mapping[str, Check]) -> set[str]:
    found: set[str] = set()
    queue = list(wanted)
    while queue:
        for need in profile[queue.pop()].needs:
            if need in profile and need not in found:
                found.add(need)
                queue.append(need)
    return found


def _inapplicable(check: Check, settings: CheckSettings, expected: Expectation, torch_missing: str) -> str:
    """Why the check is not run here; empty when it is."""
    if settings.enabled is False:
        return "switched off"
    if check.gpu_only and not expected.gpus:
        return f"{NO_GPU} ({expected.reason})"
    if expected.wsl2 and check.id in ("device.nodes", "device.uvm", "device.module"):
        return "WSL2: NVML and CUDA decide"
    if check.rung == "torch" and torch_missing:
        return f"{NOT_INSTALLED} (looked in {torch_missing})"
    if check.rung == "torch" and expected.rocm:
        return "a ROCm build of torch: not supported yet"
    return ""


def _job(check: Check, declared: Severity, settings: CheckSettings, reason: str, *, reported: bool) -> Job:
    severity = Severity.CRITICAL if settings.enabled else settings.severity or declared
    limits = {name: settings.thresholds.get(name, limit.default) for name, limit in check.thresholds.items()}
    return Job(
        check=check,
        target=EVERY_GPU if check.per_gpu else "",
        severity=severity,
        timeout_s=settings.timeout_s,
        required=bool(settings.enabled),
        skip=reason,
        reported=reported,
        thresholds={name: limit for name, limit in limits.items() if not isinstance(limit, tuple)},
        lists={name: limit for name, limit in limits.items() if isinstance(limit, tuple)},
        options={name: settings.options.get(name, option.default) for name, option in check.options.items()},
    )
