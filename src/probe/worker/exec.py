"""Wraps a foreign program: ties it to probe, points its fd 1 at the reply pipe, and becomes it.

``exec.py <reply fd> <parent pid> <working directory> <user> -- <program> [argument ...]``; an empty user: who it is.
Nothing goes through a shell.
Standard library only and Python >= 3.9, like every program of this folder that may run elsewhere.
"""

import errno
import importlib.util
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    reply_fd, parent_pid, cwd = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    user, argv = sys.argv[4], sys.argv[6:]
    spec = importlib.util.spec_from_file_location("child", os.path.join(os.path.dirname(__file__), "child.py"))
    assert spec is not None
    assert spec.loader is not None
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    child.tie_to(parent_pid)  # the death signal outlives an exec, except into a setuid program
    os.dup2(reply_fd, 1)
    os.close(reply_fd)
    try:
        if user:
            become(user)
            child.tie_to(parent_pid)  # the kernel takes the death signal back at a change of user
        os.chdir(cwd)
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def become(user: str) -> None:
    """Be this user, with the user's own groups and nothing of the caller's; raise OSError where that cannot be."""
    import pwd

    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        uid, gid, groups = entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
    except KeyError:
        if not user.isdigit():
            raise OSError(errno.EINVAL, f"no user is called {user}") from None
        uid, gid, groups = int(user), int(user), []  # a number without an entry, as in most images
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


if __name__ == "__main__":
    main()
