"""The command line: wiring only. The commands are in `probe.commands`, which is imported when one of them is called."""

import errno
import sys
import time
from typing import Any

import click

from probe import __version__, exits
from probe.output import asked_format, instead_of_report, write

COMPLAINT_S = 0.5
"""How long a reader that does not read holds up a complaint."""

HELP_FLAGS = ["-h", "--help"]

COMMANDS = {
    "check": "Can this container or node do its work now?",
    "gate": "Can these hosts run a collective job together?",
    "bench": "How fast is this machine, beside what its hardware could do?",
    "list": "The checks, and in which profiles they run.",
    "explain": "What a fault code means, and its remedy.",
    "config": "The settings in force, and who set them.",
    "state": "What the last run left for the next.",
}


class Commands(click.Group):
    """The commands by name; each is imported only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == "bench":
            from probe.measure.command import bench

            return bench
        if cmd_name == "gate":
            from probe.cluster.command import gate

            return gate
        from probe import commands

        found: click.Command = getattr(commands, cmd_name.replace("list", "list_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": HELP_FLAGS})
@click.version_option(__version__, prog_name="probe", message="%(prog)s %(version)s")
def probe() -> None:
    """Can this container, this node, this cluster do its work now? If not: what is wrong, and who can mend it?"""


def main(column: str) -> int:
    """Run the command line; the exit code is one of `column`. Every complaint of the user's input ends here."""
    try:
        result: Any = probe.main(standalone_mode=False, prog_name="probe")
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return exits.code(column, "usage")
    except click.ClickException as error:
        hint = (
            f" ({error.ctx.command_path} --help)"
            if isinstance(error, click.UsageError) and error.ctx is not None
            else ""
        )
        return complain(column, error.format_message() + hint, "the command line")
    except click.Abort:
        return exits.code(column, "interrupted")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - raised again unless it is the user's or a reader's
        return _ended_by(error, column)
    return result if isinstance(result, int) else 0


def _ended_by(error: BaseException, column: str) -> int:
    """The exit code where the user's input or a reader of stdout was the matter; any other `error` is raised again."""
    from probe.config import UsageError

    if isinstance(error, UsageError):
        return complain(column, str(error), error.where, error.allowed)
    if not _judges(sys.argv[1:]):
        if isinstance(error, SystemExit):  # what click makes of EPIPE: the reader has read enough
            return 0
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # what was asked for is cut off on a full disk
            return exits.code(column, "undetermined")
    raise error


def _judges(args: list[str]) -> bool:
    """Whether a check was to run: click does not print its report, and a broken pipe there is one to a child."""
    return args[:1] == ["check"] and not set(HELP_FLAGS) & set(args)


def complain(column: str, message: str, where: str, allowed: str = "") -> int:
    """Say what is wrong with the user's input, on stderr, and on stdout where a program reads that."""
    until = time.monotonic() + COMPLAINT_S
    form = asked_format(sys.argv)
    if form == "json":
        from probe.report import json

        write(1, json.error(message, where, [allowed] if allowed else []), until)
    elif form != "text":
        write(1, instead_of_report(form, message), until)
    write(2, f"probe: {message}\n".encode("utf-8", "replace"), until)
    return exits.code(column, "usage")
