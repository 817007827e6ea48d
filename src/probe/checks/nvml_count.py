"""Every GPU that should be here answers NVML.

What should be here: what was expected (`probe.expect`), what NVML counts, and the UUIDs of the first good run since
boot, which the state file keeps: a GPU that fell off the bus is missing from NVML's own count too (XID 79).
"""

from typing import Any

from probe.context import Context
from probe.model import Finding, Job, Kind, Status, failed, passed, warned
from probe.registry import check


@check("nvml.count", profiles="RLSN", needs=("nvml.reach",), uses=("nvml",), gpu_only=True)
async def count(context: Context, job: Job) -> Finding:
    """Does every GPU that should be here answer NVML?"""
    counted = await context.answer("nvml", "count")
    if counted.code:
        return failed(f"NVML {counted.code}: {counted.text} (count)", nvml_code=counted.code)
    expected = context.expected
    found: int = counted.data["count"]
    if found == 0:
        summary = f"NVML counts 0 GPUs, at least {expected.count} expected ({expected.reason})"
        return failed(summary, expected=expected.count, found=0)
    for index in range(found):
        attached = await context.answer("nvml", f"attached:{index}")
        if attached.code:
            summary = f"{found - 1} of {found} GPUs answer; index {index}: NVML {attached.code}, {attached.text}"
            return failed(summary, nvml_code=attached.code, expected=found, found=found - 1, index=index)
    gpus: list[dict[str, Any]] = (await context.answer("nvml", "gpus")).data["gpus"]
    uuids = [gpu["uuid"] for gpu in gpus]
    compared = _compared(found, uuids, gpus, context)
    lost = sorted(set(context.known_gpus) - set(uuids))
    told = expected.kind in (Kind.EXACTLY, Kind.LIST)  # whoever says how many knows better than an earlier run
    if lost and not told and compared.status is Status.PASS:
        known = len(context.known_gpus)
        summary = f"{known - len(lost)} of {known} GPUs: {lost[0]} was here at the first good run since boot"
        return failed(summary, expected=known, found=known - len(lost), lost=", ".join(lost))
    return compared


def _compared(found: int, uuids: list[str], gpus: list[dict[str, Any]], context: Context) -> Finding:
    """What NVML has against what was expected."""
    expected = context.expected
    instances = {uuid for gpu in gpus for uuid in gpu.get("mig", ())}
    missing = [uuid for uuid in expected.uuids if uuid not in uuids and uuid not in instances]
    here = max(found, len(instances)) if expected.mig else found
    data = {"expected": expected.count, "found": here}
    if missing:
        return failed(f"{missing[0]} is expected ({expected.reason}) and not here", **data)
    if here < expected.count:
        return failed(f"{here} of {expected.count} GPUs ({expected.reason})", **data)
    if here > expected.count and expected.more_is == "warn":
        return warned(f"{here} GPUs, {expected.count} expected ({expected.reason})", reason="more", **data)
    names = {gpu["name"] for gpu in gpus}
    product = ", ".join(sorted(names))
    where = ", ".join(f"{gpu['index']}={gpu.get('bus_id', '?')}" for gpu in gpus)
    return passed(f"{found} x {product}", uuids=", ".join(uuids), gpu_name=product, bus_ids=where, **data)
