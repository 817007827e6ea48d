"""Wraps a foreign program: ties it to probe, points its fd 1 at the reply pipe, and becomes it.

``exec.py <reply fd> <parent pid> <working directory> <user> -- <program> [argument ...]``; an empty user: who it is.
Nothing goes through a shell. What keeps it from becoming that program is said on stderr, and the exit status is a
shell's: 127 where there is no such program, 126 for all else.
Standard library only and Python >= 3.9, like every program of this folder that may run elsewhere.
"""

import errno
import importlib.util
import os
import signal
import sys
from typing import NoReturn

NOT_FOUND = 127
NOT_EXECUTED = 126


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
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored outlives an exec
        signal.signal(number, signal.SIG_DFL)
    doing = f"user {user}"
    try:
        if user:
            become(user)
            child.tie_to(parent_pid)  # the kernel takes the death signal back at a change of user
        doing = cwd
        os.chdir(cwd)
        doing = argv[0]
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{doing}: {error.strerror}\n".encode("utf-8", "replace"))
        nowhere = error.errno in (errno.ENOENT, errno.ENOTDIR) or "/" not in argv[0]  # or what is on PATH is not ours
        os._exit(NOT_FOUND if doing == argv[0] and nowhere else NOT_EXECUTED)


def become(user: str) -> None:
    """Be this user, with the user's own groups and nothing of the caller's; raise OSError where that cannot be."""
    import pwd

    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        uid, gid, groups = entry.pw_uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
        own = {"HOME": entry.pw_dir, "LOGNAME": entry.pw_name, "USER": entry.pw_name}
    except KeyError:
        if not user.isdigit():
            raise OSError(errno.EINVAL, "there is no such user") from None
        uid, gid, groups, own = int(user), int(user), [], {"HOME": "/"}  # a number without an entry, as in most images
    if uid != os.geteuid() or os.geteuid() == 0:  # who is that user already has nothing to drop, and may not
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
    for name, value in own.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
