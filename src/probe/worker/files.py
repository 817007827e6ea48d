"""Every file of a possibly sick host that can block for ever in the kernel when it is opened or asked about.

A thread per question, each with its own record, so that one hung device node or mount hides no other answer:
``open:<path>`` (code is errno, 0 opened), ``text:<path>``, ``statvfs:<path>``, ``exists:<path>`` and ``gpus``.
"""

import errno
import os
import threading
from typing import Any, Callable

GPUS = "/proc/driver/nvidia/gpus"
MAX_TEXT_BYTES = 65536


def main(child: Any, job: dict[str, list[str]]) -> None:
    """`job` maps the kind of question to the paths it is asked of."""
    threads = [
        threading.Thread(target=_answer, args=(child, kind, path), daemon=True)
        for kind, paths in job.items()
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(child: Any, kind: str, path: str) -> None:
    elapsed = child.timed()
    key = f"{kind}:{path}"
    child.step(f"{kind} {path}", key)
    try:
        data = QUESTIONS[kind](path)
    except OSError as error:
        child.say(key, code=error.errno or -1, text=error.strerror or str(error), elapsed_s=elapsed())
    else:
        child.say(key, code=0, elapsed_s=elapsed(), **data)


def _open(path: str) -> dict[str, Any]:
    """Open for reading, which is where a lost device permission shows; the mode must allow writing too, for CUDA."""
    device = os.stat(path).st_rdev
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable for this user")
    return {"major": os.major(device), "minor": os.minor(device)}


def _text(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"content": file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")}


def _statvfs(path: str) -> dict[str, Any]:
    found = os.statvfs(path)
    return {
        "size_bytes": found.f_frsize * found.f_blocks,
        "free_bytes": found.f_frsize * found.f_bavail,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
    }


def _exists(path: str) -> dict[str, Any]:
    os.stat(path)
    return {}


def _gpus(folder: str) -> dict[str, Any]:
    """The GPUs as the kernel module lists them: PCI address and UUID, one file each."""
    return {"gpus": [_information(folder, name) for name in sorted(os.listdir(folder))]}


def _information(folder: str, name: str) -> dict[str, str]:
    text = _text(os.path.join(folder, name, "information"))["content"]
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {"bus_id": name, "uuid": fields.get("GPU UUID", "").strip(), "name": fields.get("Model", "").strip()}


QUESTIONS: "dict[str, Callable[[str], dict[str, Any]]]" = {
    "open": _open,
    "text": _text,
    "statvfs": _statvfs,
    "exists": _exists,
    "gpus": _gpus,
}
