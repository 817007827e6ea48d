"""nvidia-smi, which people and schedulers rely on: it ends, and says the same number of GPUs for each of them.

Its exit status is not enough: it ends with 0 on a host whose GPU has crashed (pytorch/test-infra#3967), prints "ERR!"
among its numbers, and ends with 14 where only a checksum of the infoROM is wrong (Datura-ai/lium-io#707).
"""

import re

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, failed, passed, skipped, warned
from probe.registry import check

NOT_FOUND = 127
"""Of worker/exec.py, as a shell has it; the dynamic linker ends with it too, and then says so."""
INFOROM = 14
MOST_LINES = 1024
MOST_WORDS = 160


@check("device.smi", severity="advisory", profiles="RN", uses=("smi", "nvml"), gpu_only=True)
async def smi(context: Context, job: Job) -> Finding:
    """Does nvidia-smi answer, with the same number for every GPU?"""
    output = await context.answer("smi", "output")
    status, stderr = output.code or 0, str(output.data.get("stderr", ""))
    if status == NOT_FOUND and "shared librar" not in stderr:
        return await _absent(context)
    if status not in (0, INFOROM):
        words = shown(output.text) or shown(stderr) or "nothing"
        return failed(f"nvidia-smi ended with {status}: {words}", reason="status", smi_status=status)
    count = counted(output.text)
    if isinstance(count, str):
        return failed(f"nvidia-smi ended with {status} and printed {count}", reason="garbage", smi_status=status)
    if status == INFOROM:
        return warned("nvidia-smi ended with 14: an infoROM is corrupted", reason="inforom", smi_status=status)
    return passed(f"{count} GPUs by nvidia-smi, in {output.elapsed_s:.2f} s", found=count)


async def _absent(context: Context) -> Finding:
    """Its absence alone is no fault of a GPU: a warning where NVML works, else NVML says what is wrong."""
    try:
        init = await context.answer("nvml", "init")
    except NoAnswer:
        return skipped("nvidia-smi is not installed, and NVML does not answer (nvml.reach)")
    if init.code:
        return skipped("nvidia-smi is not installed, and NVML does not start (nvml.reach)")
    return warned("nvidia-smi is not installed here; NVML works without it", reason="absent")


def counted(text: str) -> int | str:
    """The number of GPUs, where as many lines say so and nothing else; else in words what was printed."""
    lines = text.splitlines()
    if not lines:
        return "nothing"
    if len(lines) > MOST_LINES:
        return f"{len(lines)} lines"
    strange = [line for line in lines if not re.fullmatch(r"[0-9]{1,4}", line.strip(" \t"))]
    if strange:
        return f'"{shown(strange[0])}" instead of a number'
    numbers = {int(line) for line in lines}
    if numbers != {len(lines)}:
        said = ", ".join(str(number) for number in sorted(numbers)[:8])
        return f"{len(lines)} lines, which say {said}"
    return len(lines)


def shown(text: str) -> str:
    """Its last words, on one line of printable ASCII."""
    plain = "".join(char if " " <= char <= "~" else " " if char in "\t\r\n" else "?" for char in text[-4096:])
    words = " ".join(plain.split())
    return words if len(words) <= MOST_WORDS else words[: MOST_WORDS - 3] + "..."
