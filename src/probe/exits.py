"""Exit codes, all of them, in one place.

Used before anything else of probe is imported, so that a failing import still leaves with the caller's own code: this
file imports nothing. What each caller makes of a code: Docker knows 0 and 1, Kubernetes 0 and other, Nagios 0 to 3,
node-problem-detector 0, 1 and other, and Slurm drains the node of a prolog that leaves with anything but 0.
"""

TYPE_CHECKING = False  # typing's own would be an import
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Ends that say nothing about the machine are 0 for Slurm (and loud on stderr): a mistake in a prolog's command line
# would otherwise drain every node of a cluster.
TABLE = {
    #               shell docker k8s nagios npd slurm
    "healthy":      (0,   0,     0,  0,     0,  0),
    "degraded":     (0,   0,     0,  1,     0,  0),
    "unhealthy":    (1,   1,     1,  2,     1,  1),
    "undetermined": (3,   1,     1,  3,     2,  0),
    "internal":     (3,   1,     1,  3,     2,  0),
    "usage":        (2,   1,     1,  3,     2,  0),
    "interrupted":  (130, 1,     1,  3,     2,  0),
    "terminated":   (143, 1,     1,  3,     2,  0),
}  # fmt: skip
COLUMNS = ("shell", "docker", "k8s", "nagios", "npd", "slurm")
DEFAULT = "shell"
FLAG = "--exit-codes"
VARIABLE = "PROBE_EXIT_CODES"


def code(column: str, what: str, *, strict: bool = False, liveness: bool = False) -> int:
    """The exit code of one end of a run in one caller's column.

    `what` is a verdict or "internal", "usage", "interrupted" (SIGINT), "terminated" (SIGTERM). `strict` makes
    degraded 1, but for Docker, which has no third state. In `liveness` a run that could not tell leaves with 0:
    a restart mends nothing that was not seen.
    """
    if liveness and what in ("undetermined", "internal"):
        return 0
    if strict and what == "degraded" and column != "docker":
        return 1
    return TABLE[what][COLUMNS.index(column)]


def gate(column: str, verdict: str, *, enough: bool, strict: bool = False) -> int:
    """The exit code of one verdict of ``probe gate``.

    `enough`: ``--min-hosts`` was given and that many hosts can work. Only then is "ready without some" no failure: a
    job that was sized for all of them would wait for ever for the rest.
    """
    without = "degraded" if enough else "unhealthy"
    same_as = {"ready": "healthy", "ready_without": without, "not_ready": "unhealthy"}
    return code(column, same_as.get(verdict, verdict), strict=strict)


def unwritten(column: str, otherwise: int) -> int:
    """The exit code of a run that would end with `otherwise`, had its result been written: a failure for every caller.

    Who asked for a file and is told 0 goes on with an old one, or with none: here "could not tell" is no 0 for Slurm.
    """
    return max(otherwise, code(column, "undetermined") or code(DEFAULT, "undetermined"))


def liveness(argv: "Sequence[str]", env: "Mapping[str, str]") -> bool:
    """Whether the profile is liveness, as far as the command line and the environment tell: a file may say it too."""
    asked = env.get("PROBE_PROFILE", "")
    for at, word in enumerate(argv):
        if word == "--profile" and at + 1 < len(argv):
            asked = argv[at + 1]
        elif word.startswith("--profile="):
            asked = word.partition("=")[2]
    return asked == "liveness"


def column(argv: "Sequence[str]", env: "Mapping[str, str]") -> str:
    """The column that the command line, else the environment, asks for.

    The last flag wins, as in the parser proper. Nonsense counts as the default here; the config complains of it.
    """
    asked = env.get(VARIABLE) or DEFAULT
    for at, word in enumerate(argv):
        if word == "--":
            break
        if word == FLAG:
            asked = argv[at + 1] if at + 1 < len(argv) else DEFAULT
        elif word.startswith(FLAG + "="):
            asked = word[len(FLAG) + 1 :]
    return asked if asked in COLUMNS else DEFAULT
