"""A small kernel runs on the GPU and every word it writes is right, verified on the host one by one."""

from probe.context import Context
from probe.model import Finding, Job, failed, passed, skipped
from probe.registry import check

OUT_OF_MEMORY = 2


@check("cuda.kernel", profiles="RSN", needs=("cuda.context",), uses=("cuda",), per_gpu=True, gpu_only=True)
async def kernel(context: Context, job: Job) -> Finding:
    """Does a kernel run on the GPU and write exactly what it should?"""
    ran = await context.answer("cuda", "kernel", job.target)
    if ran.code == OUT_OF_MEMORY:
        return skipped("out of memory: the test's buffer does not fit", cuda_code=ran.code)
    if ran.code:
        call = ran.data.get("call", "kernel")
        return failed(f"{call} gives {ran.code}, {ran.text}", cuda_code=ran.code, step=str(call))
    words, wrong = ran.data["words"], ran.data["wrong_words"]
    copied_wrong = ran.data.get("copy_wrong_words", 0)
    data = {"words": words, "wrong_words": wrong, "copy_wrong_words": copied_wrong}
    if wrong or copied_wrong:
        first = ran.data.get("first_wrong_index")
        what = f"{wrong} of {words} words that the kernel wrote are wrong (the first is word {first})"
        if not wrong:
            what = f"{copied_wrong} words came back wrong from a copy to the GPU and back"
        return failed(what, reason="wrong_words", **data)
    return passed(f"{words} words exact in {ran.elapsed_s:.3f} s", **data)
