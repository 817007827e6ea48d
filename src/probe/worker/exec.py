"""Wraps a foreign program: ties it to probe, points its fd 1 at the reply pipe, and becomes it.

``exec.py <reply fd> <parent pid> <working directory> -- <program> [argument ...]``. Nothing goes through a shell.
Standard library only and Python >= 3.9, like every program of this folder that may run elsewhere.
"""

import importlib.util
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    reply_fd, parent_pid, cwd = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    argv = sys.argv[5:]
    spec = importlib.util.spec_from_file_location("child", os.path.join(os.path.dirname(__file__), "child.py"))
    assert spec is not None
    assert spec.loader is not None
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    child.tie_to(parent_pid)  # the death signal outlives an exec, except into a setuid program
    os.dup2(reply_fd, 1)
    os.close(reply_fd)
    try:
        os.chdir(cwd)
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
