"""Who computes on the GPU, by NVML.

Inside a container the list is empty or carries the host's pids: it is reported there and not judged. Outside, a
process that NVML lists and the kernel does not know is a context nobody can free.
"""

from probe.context import Context
from probe.model import Finding, Job, passed, warned
from probe.registry import check


@check(
    "nvml.processes",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.processes",),
    per_gpu=True,
    gpu_only=True,
)
async def processes(context: Context, job: Job) -> Finding:
    """Does every compute process that NVML lists exist?"""
    found = (await context.nvml("processes", job.target)).data
    pids: list[int] = found["pids"]
    data = {"processes": found["count"], "pids": ", ".join(map(str, pids)), "used_bytes": found["used_bytes"]}
    if not pids:
        return passed("no compute process listed", **data)
    if context.facts.in_container:
        return passed(f"{found['count']} compute processes listed (the host's pids)", **data)
    alive = set(context.host.names("/proc"))
    gone = [pid for pid in pids if str(pid) not in alive]
    if gone:
        return warned(f"pid {gone[0]} holds the GPU and is no process any more", reason="gone", **data)
    return passed(f"{found['count']} compute processes: {data['pids']}", **data)
