"""The entry point. Everything that can go wrong from the first line on ends in the caller's own exit code.

::

    main -> (check: a process of its own, if this one has children already) -> nets, signals -> cli -> commands -> run

Imported at the top is only what every interpreter has loaded already: the rest comes inside `main`, where an exception,
a Ctrl-C among them, becomes an exit code. The exit-code column is read before anything else is imported.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would be an import
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line of this process and leave; never returns."""
    code = 3
    try:
        _forget_working_directory()
        from probe import exits

        column = exits.column(sys.argv[1:], os.environ)
        code = exits.code(column, "internal", liveness=exits.liveness(sys.argv[1:], os.environ))
        try:
            code = _run(column)
        except KeyboardInterrupt:
            code = exits.code(column, "interrupted")
    except BaseException as error:  # noqa: BLE001 - the last line of defence: an exit code of the caller's, no traceback
        _complain(error)
    _leave(code)


def _forget_working_directory() -> None:
    """Import nothing from there, least of all as root.

    ``python -m`` puts it on the path, and so do empty entries of PYTHONPATH. A ``json.py`` beside somebody's notebook
    must not become ours.
    """
    named = os.environ["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in os.environ else []
    try:
        unwanted = {os.path.abspath(entry) for entry in named if not os.path.isabs(entry)}
        if __name__ == "__main__" and not sys.flags.safe_path:
            unwanted.add(os.getcwd())
    except OSError:  # the working directory was removed: nothing can come from it
        return
    sys.path[:] = [entry for entry in sys.path if entry not in unwanted or entry in named]


def _run(column: str) -> int:
    if {"check", "gate", "bench"} & set(sys.argv[1:]) and "--help" not in sys.argv:
        from probe import attempt

        attempt.begin(column)
    from probe import cli

    return cli.main(column)


def _complain(error: BaseException) -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
        return
    import time

    from probe.output import asked_format, instead_of_report, write

    words = f"internal error: {type(error).__name__}: {error} (--debug shows where)"[:500]
    form = asked_format(sys.argv)
    if form == "json":
        from probe.report import json

        write(1, json.error(words, "probe"), time.monotonic() + 0.1)
    elif form != "text":
        write(1, instead_of_report(form, words), time.monotonic() + 0.1)
    write(2, f"probe: {words}\n".encode("utf-8", "replace"), time.monotonic() + 0.1)


def _leave(code: int) -> "NoReturn":
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - contextlib is not loaded yet
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed by the reader, or never there
            pass
    os._exit(code)  # not sys.exit: an abandoned thread must not hold the end of the process


if __name__ == "__main__":
    main()
