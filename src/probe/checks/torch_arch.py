"""This build of torch holds code for this GPU: its architecture list against the compute capability.

SASS runs on the same major version and a minor version at least its own; PTX (``compute_90``) of an older architecture
is compiled at first use, which takes minutes for the whole of torch (cudf-spark#11423: 20): a warning.
"""

import re

from probe.context import Context
from probe.model import Finding, Job, failed, passed, skipped, warned
from probe.registry import check

ENTRY = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@check(
    "torch.arch",
    profiles="RSN",
    needs=("torch.import", "torch.build", "cuda.context"),
    uses=("torch",),
    per_gpu=True,
    gpu_only=True,
)
async def arch(context: Context, job: Job) -> Finding:
    """Does this build of torch hold code for this GPU?"""
    found = await context.answer("torch", "arch", job.target)
    if found.code:
        return skipped(f"torch could not say: {found.text}")
    capability, archs = str(found.data["capability"]), list(found.data["arch_list"])
    fit = fits(capability, archs)
    data = {"capability": capability, "arch_list": " ".join(archs)}
    if fit == "sass":
        return passed(f"compute capability {capability} is in this build ({data['arch_list']})", **data)
    if fit == "ptx":
        summary = f"compute capability {capability} only by PTX, compiled for minutes at first use"
        return warned(f"{summary} ({data['arch_list']})", reason="ptx_only", **data)
    summary = f"this torch holds no code for compute capability {capability} (it has {data['arch_list']})"
    return failed(summary, reason="arch_missing", **data)


def fits(capability: str, archs: list[str]) -> str:
    """How a build with `archs` serves a GPU of `capability` ("9.0"): "sass", "ptx" or "" for not at all."""
    major, minor = (int(part) for part in capability.split("."))
    by_ptx = False
    for name in archs:
        if match := ENTRY.fullmatch(name):
            kind, own = match[1], (int(match[2]), int(match[3]))
            if kind == "sm" and own[0] == major and (own[1] == minor or (own[1] < minor and not match[4])):
                return "sass"
            by_ptx |= kind == "compute" and own <= (major, minor) and not match[4]
    return "ptx" if by_ptx else ""
