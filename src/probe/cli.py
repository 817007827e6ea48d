"""The command line: wiring only. The commands are in `probe.commands`, which is imported when one of them is called."""

import sys
import time
from typing import Any

import click

from probe import __version__, exits
from probe.attempt import wants_json
from probe.output import write

COMPLAINT_S = 0.5
"""How long a reader that does not read holds up a complaint."""

COMMANDS = {
    "check": "Can this container or node do its work now?",
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
        from probe import commands

        found: click.Command = getattr(commands, cmd_name.replace("list", "list_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    except Exception as error:
        from probe.config import UsageError

        if not isinstance(error, UsageError):
            raise
        return complain(column, str(error), error.where, error.allowed)
    return result if isinstance(result, int) else 0


def complain(column: str, message: str, where: str, allowed: str = "") -> int:
    """Say what is wrong with the user's input, on stderr, and as JSON on stdout where JSON was asked for."""
    until = time.monotonic() + COMPLAINT_S
    if wants_json(sys.argv):
        from probe.report import json

        write(1, json.error(message, where, [allowed] if allowed else []), until)
    write(2, f"probe: {message}\n".encode("utf-8", "replace"), until)
    return exits.code(column, "usage")
