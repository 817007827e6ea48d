"""The report for people: `Report` -> text.

::

    unhealthy: <cause>. <remedy> [who] +1 more (what was not tested)      <= 200 characters, alone enough to act on
    note: ...                                       where the first line had no room for all of one
    CODE [who] <cause>
      remedy: ...
      explains: nvml.count, torch.tensor (8 GPUs)
    fail    nvml.reach    ...                       problems first, then skips, then passes, GPUs folded together
    pass    torch.tensor  8 GPUs: ...  0.61 s

Docker keeps the first 4096 bytes of a health check's output. The default text fits: first what passed is left out,
then words, and only then lines about problems, whose causes stand above them; what is left out is counted. Over 300
lines because every part must be able to say itself shorter when another needs the room.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from probe.model import EVERY_GPU, PROBLEMS, Cause, Outcome, Report, Severity, Status, Verdict
from probe.redact import clean, redact

LIMIT_BYTES = 4096
LIMIT_FIRST_LINE = 200
LIMIT_REMEDY = 90
ROOM_FOR_COUNT = 80  # bytes of the line that counts what was left out

COLOURS = {"pass": 32, "healthy": 32, "skip": 2, "warn": 33, "degraded": 33, "unknown": 35, "undetermined": 35}
RED = 31

# The furthest rung that passed says what was really tested.
DEEDS = {"torch.tensor": "computed exactly", "cuda.kernel": "ran a verified kernel", "nvml.": "answered NVML"}

Say = Callable[[str], str]
Paint = Callable[[str, str], str]


class Detail(Struct, frozen=True):
    """How much one attempt at fitting says."""

    causes: int
    full_remedies: int
    words: int
    """Characters of a summary."""
    fold: bool
    """Whether problems of several GPUs share a line even where their words differ."""


FEW_ALIKE = 3
"""Fewer checks than this that ended alike have a line each."""

EVERYTHING = Detail(causes=1000, full_remedies=1000, words=100_000, fold=False)
DETAILS = (
    Detail(causes=1000, full_remedies=1000, words=400, fold=False),
    Detail(causes=1000, full_remedies=2, words=200, fold=False),
    Detail(causes=12, full_remedies=1, words=120, fold=False),
    Detail(causes=12, full_remedies=1, words=100, fold=True),
    Detail(causes=6, full_remedies=1, words=70, fold=True),
    Detail(causes=4, full_remedies=0, words=50, fold=True),
)


def render(report: Report, *, colour: bool = False, width: int | None = None, verbose: bool = False) -> str:
    """The whole text, ended by a newline; at most 4096 bytes of UTF-8 unless `verbose`.

    `width` is the terminal's: lines about what passed or was skipped are cut to it.
    """
    say = speaker(outcome.target for outcome in report.checks)
    paint = _painter(colour)
    first = headline(report, say)
    notes = [f"note: {cut(note, LIMIT_FIRST_LINE)}" for note in map(say, report.notes) if note.rstrip(".") not in first]
    top = [paint(report.verdict.value, first), *notes]
    rest = _rest(report, say, paint, width)
    if verbose:
        return _joined(top + _problems(report, say, paint, EVERYTHING) + rest)
    lines = top
    for detail in DETAILS:
        lines = top + _problems(report, say, paint, detail)
        if _size([*lines, *rest]) <= LIMIT_BYTES:
            return _joined(lines + rest)
        if _size(lines) <= LIMIT_BYTES - ROOM_FOR_COUNT:
            return _filled(lines, rest)
    return _filled([], lines + rest)


def _filled(lines: list[str], rest: Sequence[str]) -> str:
    """`lines` and as many of `rest` as fit, and how many do not."""
    kept = list(lines)
    size = _size(kept)
    for line in rest:
        size += _size([line])
        if size > LIMIT_BYTES - ROOM_FOR_COUNT:
            break
        kept.append(line)
    out = len(lines) + len(rest) - len(kept)
    return _joined([*kept, f"... {out} more line{'s' * (out != 1)}; --format json has all"])


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _joined(lines: Iterable[str]) -> str:
    return "".join(line + "\n" for line in lines)


# The first line


def headline(report: Report, say: Say) -> str:
    """The verdict, the cause and the remedy, or what was really tested; and what was not. At most 200 characters."""
    notes = [say(note).rstrip(".") for note in report.notes]
    if report.causes and report.verdict is not Verdict.HEALTHY:
        cause = report.causes[0]
        middle = say(cause.summary).rstrip(". ")
        more = f" +{len(report.causes) - 1} more" if len(report.causes) > 1 else ""
        end = f". {cut(first_sentence(say(cause.remedy)), LIMIT_REMEDY)} [{cause.who.value}]{more}"
        form = " ({})"
    else:
        middle, end, form = _tested(report, say), "", "; {}"
    start = f"{report.verdict.value}: "
    aside, room = "", LIMIT_FIRST_LINE
    for words in (1000, 60, 30):
        said = "; ".join(note if words == 1000 else _brief(note) for note in notes)
        aside = form.format(cut(said, words)) if notes else ""
        room = LIMIT_FIRST_LINE - len(start + end + aside)
        if len(middle) <= room:
            break
    return cut(start + cut(middle, room) + end + aside, LIMIT_FIRST_LINE)


def _brief(note: str) -> str:
    """A note without its reasons: ``torch not installed (looked in ...)`` is ``torch not installed``."""
    return note.partition(" (")[0]


def first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def _tested(report: Report, say: Say) -> str:
    passed = {outcome.id for outcome in report.checks if outcome.status is Status.PASS}
    counted = f"{len(passed)} check{'s' * (len(passed) != 1)} passed in {report.elapsed_s:.1f} s"
    for rung, deed in DEEDS.items():
        gpus = {o.target: None for o in report.checks if o.id.startswith(rung) and o.target and o.status is Status.PASS}
        if gpus:
            return f"{say(_processors(report, list(gpus)))} {deed}; {counted}"
    return counted if passed else "no check ended in pass or warn"


def _processors(report: Report, targets: Sequence[str]) -> str:
    """``8 x NVIDIA H100 80GB HBM3``, from the `gpu_name` in some check's data."""
    gpus = [target for target in targets if target.startswith("gpu:")]
    if not gpus:
        return "CPU"
    known = {o.target: o.data["gpu_name"] for o in report.checks if o.data.get("gpu_name")}
    names = {str(known.get(gpu, known.get("", "GPU"))) for gpu in gpus}
    name = names.pop() if len(names) == 1 else "GPU"
    return f"{len(gpus)} x {name}"


# Causes and checks


def _problems(report: Report, say: Say, paint: Paint, detail: Detail) -> list[str]:
    """The causes with what they explain, and a line for each problem."""
    lines: list[str] = []
    for number, cause in enumerate(report.causes[: detail.causes]):
        lines += _cause(cause, say, paint, number < detail.full_remedies, detail.words)
    if len(report.causes) > detail.causes:
        lines.append(f"... {len(report.causes) - detail.causes} more causes; --format json has all")
    groups = _grouped((o for o in report.checks if o.status in PROBLEMS), say, apart=not detail.fold)
    if detail is EVERYTHING:
        return lines + [_line(group, say, paint, detail.words) for group in groups]
    return lines + _lines(groups, say, paint, detail.words)


def _lines(groups: Iterable[list[Outcome]], say: Say, paint: Paint, words: int, width: int | None = None) -> list[str]:
    """A line for each group, and one for several checks that ended alike: the same words about the same targets."""
    alike: dict[tuple[str, ...], list[list[Outcome]]] = {}
    for group in groups:
        first, said = group[0], folded([_own_words(outcome, say) for outcome in group])
        about = () if first.status is Status.SKIP else (first.severity.value, _where(group, say))
        alike.setdefault((first.status.value, said, *about), []).append(group)
    lines = []
    for several in alike.values():
        if len(several) < FEW_ALIKE:
            lines += [_line(group, say, paint, words, width) for group in several]
        else:
            lines.append(_shared_line(several, say, paint, words, width))
    return lines


def _shared_line(groups: Sequence[list[Outcome]], say: Say, paint: Paint, words: int, width: int | None) -> str:
    first = groups[0][0]
    checks = by_rung(group[0].id for group in groups)
    advisory = "(advisory) " * (first.severity is Severity.ADVISORY and first.status in PROBLEMS - {Status.WARN})
    where = _where(groups[0], say) if first.status is not Status.SKIP else ""
    text = f"{f'{len(groups)} checks':<18}  {advisory}{where}{': ' * bool(where)}"
    text += f"{cut(folded([_own_words(outcome, say) for outcome in groups[0]]), words)}: {say(checks)}"
    status = first.status.value
    return f"{paint(status, f'{status:<7}')}  {cut(text, 400 if width is None else max(40, width - 9))}"


def _cause(cause: Cause, say: Say, paint: Paint, full: bool, words: int) -> list[str]:
    remedy = say(cause.remedy)
    lines = [
        f"{paint('fail', say(cause.code))} [{cause.who.value}] {cut(say(cause.summary), words)}",
        f"  remedy: {remedy if full else first_sentence(remedy)}",
    ]
    counts: dict[str, int] = {}
    for reference in cause.checks:
        if reference.id != cause.checks[0].id:
            counts[reference.id] = counts.get(reference.id, 0) + 1
    if counts:
        named = ", ".join(name if number == 1 else f"{name} ({number} GPUs)" for name, number in counts.items())
        lines.append(f"  explains: {cut(say(named), max(words, 80))}")
    return lines


def _rest(report: Report, say: Say, paint: Paint, width: int | None) -> list[str]:
    """Lines about the checks that were skipped, then about those that passed."""
    skipped = _grouped((o for o in report.checks if o.status is Status.SKIP), say, apart=False)
    passed = _grouped((o for o in report.checks if o.status is Status.PASS), say, apart=False)
    return _lines(skipped, say, paint, 160, width) + [_line(group, say, paint, 160, width) for group in passed]


def by_rung(checks: Iterable[str]) -> str:
    """Check ids with each rung named once: ``device.nodes .uvm, nvml.reach``."""
    rungs: dict[str, list[str]] = {}
    for check in checks:
        rung, _, name = check.partition(".")
        rungs.setdefault(rung, []).append(name)
    return ", ".join(f"{rung}.{' .'.join(names)}" for rung, names in rungs.items())


def _grouped(outcomes: Iterable[Outcome], say: Say, apart: bool) -> list[list[Outcome]]:
    """The outcomes by check and status, and where they are kept `apart` also by what they say."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        words = _own_words(outcome, say) if apart else ""
        groups.setdefault((outcome.id, outcome.status, outcome.severity, words), []).append(outcome)
    return list(groups.values())


def _line(group: Sequence[Outcome], say: Say, paint: Paint, words: int, width: int | None = None) -> str:
    first = group[0]
    status = first.status.value
    advisory = first.severity is Severity.ADVISORY and first.status in PROBLEMS - {Status.WARN}
    where = _where(group, say)
    text = f"{say(first.id):<18}  {'(advisory) ' * advisory}{where}{': ' * bool(where)}"
    text += cut(folded([_own_words(outcome, say) for outcome in group]), words)
    seconds = f"  {max(outcome.elapsed_s for outcome in group):.2f} s" if first.status is not Status.SKIP else ""
    if width is not None:
        text = cut(text, max(40, width - 9 - len(seconds)))
    return f"{paint(status, f'{status:<7}')}  {text}{seconds}"


def _where(group: Sequence[Outcome], say: Say) -> str:
    targets = list(dict.fromkeys(outcome.target for outcome in group if outcome.target))
    if len(targets) > 3:
        return f"{len(targets)} {'GPUs' if targets[0].startswith('gpu:') else 'targets'}"
    return ", ".join("every GPU" if target == EVERY_GPU else say(target).removeprefix("gpu:") for target in targets)


def _own_words(outcome: Outcome, say: Say) -> str:
    """The summary without the name of its own target, which the line has in front."""
    name = say(outcome.target).removeprefix("gpu:")
    words = say(outcome.summary)
    return words.removeprefix(name).lstrip(": ") if name else words


NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def folded(texts: Sequence[str]) -> str:
    """One text for several: numbers that differ become ranges, and where more differs the first stands for all."""
    split = [NUMBER.split(text) for text in texts]
    if any(len(parts) != len(split[0]) or parts[::2] != split[0][::2] for parts in split):
        return f"{texts[0]} (and others)"
    columns = [list(dict.fromkeys(column)) for column in zip(*split, strict=True)]
    return "".join(
        column[0] if len(column) == 1 else f"{min(column, key=float)} to {max(column, key=float)}" for column in columns
    )


# Words


UUID = re.compile(r"(GPU|MIG)-([0-9a-fA-F]{8})[0-9a-fA-F-]{0,64}")


def speaker(targets: Iterable[str]) -> Say:
    """A function that makes any text fit to be shown: one line, no secrets, GPUs by the first digits of their UUIDs."""
    names = _short_names({target.partition(":")[2] for target in targets})

    def say(text: str) -> str:
        return UUID.sub(lambda found: names.get(found[0], f"{found[1]}-{found[2]}"), redact(clean(redact(text))))

    return say


def _short_names(names: set[str]) -> Mapping[str, str]:
    """Names cut to 8 hex digits, or to as many groups of digits as tell them apart."""
    whole = {name for name in names if UUID.fullmatch(name)}
    for digits in (8, 13, 18, 23):
        short = {name: name[: 4 + digits] for name in whole}
        if len(set(short.values())) == len(whole):
            return short
    return {name: name for name in whole}


def cut(text: str, characters: int) -> str:
    """`text`, with an ellipsis where it is longer than `characters`."""
    return text if len(text) <= characters else text[: max(0, characters - 3)].rstrip() + "..."[: max(0, characters)]


def _painter(colour: bool) -> Paint:
    """A function of a status or verdict and a text: the text in the colour of the status."""
    if not colour:
        return lambda status, text: text
    return lambda status, text: f"\x1b[{COLOURS.get(status, RED)}m{text}\x1b[0m"


def use_colour(stream_is_tty: bool, env: Mapping[str, str]) -> bool:
    """https://no-color.org and https://force-color.org; where both are set, no colour."""
    if env.get("NO_COLOR"):
        return False
    if env.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stream_is_tty and env.get("TERM") != "dumb"


def progress_line(outcome: Outcome, colour: bool = False) -> str:
    """One check as it ends, for stderr of a terminal; without a newline."""
    return _line([outcome], speaker([outcome.target]), _painter(colour), 100)
