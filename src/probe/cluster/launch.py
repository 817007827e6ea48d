"""What a launcher is: it starts the agent on a host and hands over the lines between us.

::

    Launcher --open(host)--> Channel        local.py: children of this process;  ssh.py: held connections
                                            slurm.py: srun's own streams

    NotReached    no agent was started there; `reason` is the evidence by which the catalogue knows the fault
    Closed        the lines ended: how, as far as the launcher can tell
"""

from types import TracebackType
from typing import Protocol, Self

from probe.cluster.hosts import Host

AGENT = "probe.rank.agent"
OLDEST_PYTHON = (3, 11)
FLOOD = "it sent more than any agent has to say"
BOOT = (
    "import sys\n"
    "sys.path[:] = [entry for entry in sys.path if entry not in ('', '.')]\n"  # never import from where we happen to be
    "if sys.version_info < (3, 11): sys.exit('probe: python is %d.%d, 3.11 is needed' % sys.version_info[:2])\n"
    "try:\n"
    "    from probe.rank import agent\n"
    "except ImportError as error: sys.exit('probe: cannot be imported: %s' % error)\n"
    "agent.main(sys.argv[1:])\n"
)
"""The first lines of the agent under whatever Python is there: says in one line what is missing."""


class NotReached(Exception):
    """No agent on this host. `reason` is a word of the catalogue, `summary` a sentence for people."""

    def __init__(self, reason: str, summary: str) -> None:
        super().__init__(summary)
        self.reason = reason
        self.summary = summary


class Closed(Exception):
    """Nothing more will come on this channel; the words say how it ended."""


class Channel(Protocol):
    """The lines to and from the agent of one host."""

    async def send(self, line: bytes) -> None:
        """Send one line, newline included. Raises `Closed`."""

    async def receive(self) -> bytes:
        """The next line, without its newline, of at most `protocol.MAX_LINE_BYTES`. Raises `Closed`."""

    async def close(self) -> None:
        """Give the connection up; the agent sees the end of its input, if it is still there. Bounded."""


class Launcher(Protocol):
    name: str
    """As the report has it: local, ssh or slurm."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def open(self, host: Host) -> Channel:
        """Start the agent on `host`. Raises `NotReached`."""
