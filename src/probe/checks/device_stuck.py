"""A child of an earlier run that was killed and never went: a driver call that even SIGKILL does not end.

More than 10 s after the kill it is no CUDA teardown, which takes 0.2 s with 42 GB allocated (measured on an H100). The
process waits in the kernel (state D); nothing in this container can end it (nvidia-docker#377, NVSentinel#1576).
"""

from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.registry import check


@check("device.stuck", profiles="RLSN")
async def stuck(context: Context, job: Job) -> Finding:
    """Is a child of an earlier run still stuck in the driver?"""
    found = [(child, words) for child in context.stuck if (words := child.stuck())]
    if not found:
        return passed("no child of an earlier run is left")
    child, words = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    summary = f"a {child.worker} process of an earlier run is stuck in the kernel: {words}{more}"
    return failed(
        summary, reason="stuck", worker=child.worker, pid=child.pid, found=len(found), stuck_target=child.target
    )
