"""The entry point. Everything that can go wrong from the first line on ends in the caller's own exit code.

::

    main -> (check: a process of its own, if this one has children already) -> nets, signals -> cli -> commands -> run

Of probe, only what imports nothing heavy is imported here; the exit-code column is read before anything else is.
"""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from probe import exits


def main() -> NoReturn:
    """Run the command line of this process and leave; never returns."""
    column = exits.column(sys.argv[1:], os.environ)
    code = exits.code(column, "internal")
    try:
        code = _run(column)
    except KeyboardInterrupt:
        code = exits.code(column, "interrupted")
    except BaseException as error:  # noqa: BLE001 - the last line of defence: an exit code of the caller's, no traceback
        if "--debug" in sys.argv:
            import traceback

            traceback.print_exc()
        else:
            words = f"probe: internal error: {type(error).__name__}: {error} (--debug shows where)"
            os.write(2, words[:500].encode() + b"\n")
    _flush()
    os._exit(code)  # not sys.exit: an abandoned thread must not hold the end of the process


def _run(column: str) -> int:
    checking = "check" in sys.argv[1:] and "--help" not in sys.argv
    if checking:
        from probe import attempt

        attempt.begin(column)
    from probe import cli

    return cli.main(column)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed by the reader, or never there
            stream.flush()


if __name__ == "__main__":
    main()
