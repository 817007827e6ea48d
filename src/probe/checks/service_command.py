"""A program of the user's own, ``[[command]]``: its exit status, and what it prints, are as they should be.

It runs under ``worker/exec.py``, as the user that is named, and is killed at its own ``timeout``; whatever it left in
the background goes with the run.
"""

from collections.abc import Mapping
from typing import Any

from probe.checks.reaching import found, shown
from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.options import A_PATH, one_or_several, option, path, pattern, several, table, text, user, whole, words
from probe.registry import TARGETS, check

NOT_STARTED = {126: " (it could not be executed)", 127: " (it was not found)"}
"""As a shell has it, and `worker/exec.py` after it."""


def complaint(options: Mapping[str, Any]) -> str:
    return "" if bool(options["argv"]) != bool(options["shell"]) else "it takes one of argv and shell"


def _environment(value: object) -> Mapping[str, str]:
    found = table(text)(value)
    if any("=" in name for name in found) or any("\0" in item for item in found.values()):
        raise ValueError(value)
    return found


@check(
    "service.command",
    profiles="RS",
    into=TARGETS,
    uses=("command",),
    options={
        "argv": option(several(words), "a list of words", "the program and its arguments; no shell", ()),
        "shell": option(words, "text", "instead of argv: a line for /bin/sh -c", ""),
        "exit": option(
            one_or_several(whole(0, 255)), "an exit status from 0 to 255, or a list", "how it must end", (0,)
        ),
        "match": option(pattern, "a regular expression", "what the first 64 KiB of its stdout must hold", ""),
        "env": option(_environment, "a table of text", "laid over probe's environment; never shown", {}, secret=True),
        "cwd": option(path, A_PATH, "its working directory", "/"),
        "user": option(user, "a user's name or number", "as whom it runs, which takes root (as probe itself)", ""),
    },
    complaint=complaint,
)
async def command(context: Context, job: Job) -> Finding:
    """Does this program end as it should, and print what it should?"""
    output = await context.answer("command", "output", job.id)
    status, expected, wanted = output.code or 0, job.options["exit"], job.options["match"]
    ended = f"{job.id.rpartition('.')[2]} ended with {status}"
    if status not in expected:
        ended += f"{NOT_STARTED.get(status, '')}, expected {' or '.join(map(str, expected))}"
        reason = "not_started" if status in NOT_STARTED else "status"
        return failed(f"{ended}{_said(job, output.data['stderr'], output.text)}", reason=reason, exit_status=status)
    if wanted and not found(wanted, output.text):
        printed = _said(job, output.text) or "; it printed nothing"
        words_ = f"{ended}, and its stdout does not match /{shown(wanted)}/{printed}"
        return failed(words_, reason="content", exit_status=status)
    return passed(f"{ended}{f', its stdout matches /{shown(wanted)}/' if wanted else ''}", exit_status=status)


def _said(job: Job, *texts: str) -> str:
    """The last line of the first text that has one."""
    for printed in texts:
        if lines := [line for line in printed.splitlines() if line.strip()]:
            return f'; it said "{shown(lines[-1], job.options["env"].values())}"'
    return ""
