"""A world of one rank forms, computes exactly and ends: NCCL on a GPU, gloo on the CPU (`worker/nccl.py`).

What keeps NCCL from starting at all shows here without a second GPU or host: an interface that is not there, a
/dev/shm or a limit that is too small, a library that was swapped, a kernel that this GPU cannot load.
"""

from probe.context import Context
from probe.model import Finding, Job, Record, Scalar, failed, passed, skipped, warned
from probe.registry import check

NAMES = {"nccl": "NCCL", "gloo": "gloo"}
OUT_OF_MEMORY = 2


@check("torch.nccl", profiles="N", needs=("torch.import", "torch.build", "cuda.context"), uses=("nccl",), per_gpu=True)
async def nccl(context: Context, job: Job) -> Finding:
    """Does torch.distributed form a world of one rank here and compute exactly in it?"""
    said = await context.answer("nccl", "world", job.target)
    reason, backend = said.data.get("reason", ""), NAMES[said.data["backend"]]
    if reason.startswith("no_"):
        return _lacking(reason, backend)
    version = said.data.get("nccl_version")
    data: dict[str, Scalar] = {"backend": said.data["backend"], **({"nccl_version": version} if version else {})}
    name = f"{backend} {version}" if version else backend
    if said.code == OUT_OF_MEMORY:
        return skipped(f"{name}: out of memory in {said.data['call']}: {said.text}", cuda_code=OUT_OF_MEMORY, **data)
    if said.code:
        data |= {"reason": "raised", "step": said.data["call"], "nccl_error": said.data["nccl_error"]}
        return failed(f"{name}, {said.data['call']}: {said.text}", **data)
    return _judged(said, name, data)


def _lacking(reason: str, backend: str) -> Finding:
    """A GPU by itself needs no NCCL, and several do; the CPU is no place to miss gloo."""
    if backend != "NCCL":
        return skipped(f"torch is built without {'torch.distributed' if reason == 'no_distributed' else backend}")
    what = "torch.distributed" if reason == "no_distributed" else "NCCL"
    return warned(f"torch is built without {what}: it cannot use several GPUs together", reason=reason)


def _judged(said: Record, name: str, data: dict[str, Scalar]) -> Finding:
    data |= {key: said.data[key] for key in ("words", "wrong_words", "init_s", "collectives_s")}
    if wrong := said.data["wrong_words"]:
        summary = f"{name}: {wrong} of {said.data['words']} words are wrong, first in {said.data['first_wrong']}"
        return failed(summary, reason="wrong_words", **data)
    if not said.data["destroyed"]:
        return warned(f"{name}: exact, but its world does not end", reason="destroy_hangs", **data)
    return passed(f"{name}: a world of one rank in {said.data['init_s']:.2f} s, exact in {said.data['dtypes']}", **data)
