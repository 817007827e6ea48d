"""torch computes exactly on every GPU, or on the CPU where there is none: the tensor test of `worker/tensor.py`.

Two products per dtype, compared with the host's own word by word: a wrong bit in any output or input word fails it.
Out of memory is no fault of the GPU: skipped, and said.
"""

from probe.context import Context
from probe.model import Finding, Job, Rung, Scalar, Status, failed, skipped
from probe.registry import check

DTYPES = ("fp32", "bf16", "fp16")
OUT_OF_MEMORY = 2


@check(
    "torch.tensor", profiles="RSN", needs=("torch.import", "torch.build", "cuda.context"), uses=("torch",), per_gpu=True
)
async def tensor(context: Context, job: Job) -> Finding:
    """Does torch compute exactly on this device?"""
    rungs: list[Rung] = []
    for dtype in DTYPES:
        result = await context.answer("torch", f"tensor:{dtype}", job.target)
        wrong, wrong_inputs = result.data.get("wrong_words", 0), result.data.get("wrong_inputs", 0)
        if result.code == OUT_OF_MEMORY:
            return skipped(f"out of memory in {dtype}: {result.text}", cuda_code=OUT_OF_MEMORY)
        if result.code:
            data: dict[str, Scalar] = {"cuda_code": result.code} if result.code > 0 else {}
            return failed(f"{dtype}: {result.text}", reason="tensor_error", dtype=dtype, **data)
        if wrong or wrong_inputs:
            what = f"{wrong} of {result.data['words']} output words" if wrong else f"{wrong_inputs} input words"
            data = {"dtype": dtype, "wrong_words": wrong, "wrong_inputs": wrong_inputs}
            return failed(f"{dtype}: {what} are wrong", reason="wrong_words", **data)
        rungs.append(Rung(dtype, Status.PASS, result.elapsed_s))
    took_s = sum(rung.elapsed_s for rung in rungs)
    return Finding(Status.PASS, f"exact in {', '.join(DTYPES)} in {took_s:.2f} s", {}, tuple(rungs))
