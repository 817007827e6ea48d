"""The page: everything in it, nothing fetched, every plot there; and a real browser opens it without network."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from msgspec.structs import replace

from probe.measure import baseline, page, plots
from probe.measure.model import Bench, Done
from tests.measure import samples
from tests.system.command import missing

PLOTS = {
    "limits",
    "startup",
    "driver",
    "checks",
    "matmul",
    "matmul-limits",
    "memory",
    "host",
    "peer",
    "collective",
    "latency",
    "changes",
}
VOID = {"meta", "br", "hr", "img", "input", "link"}
DRAWN = {"rect", "line", "circle", "polyline", "polygon", "text", "title", "g"}
UNCLOSED = {"td", "th"}


def whole() -> Bench:
    """Of eight GPUs, against a baseline that it is partly worse than."""
    slower = {"matmul bf16 8192": 1.09, "collective all_reduce 1 GiB": 1.2, "matmul fp16 4096": 0.9}
    before, now = samples.run(8, seed=1), samples.run(8, seed=2, slower=slower)
    return replace(now, comparison=baseline.compare(before, now, "base.json", 0.05))


class Reader(HTMLParser):
    """The elements of a page, and whether they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.plots: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        named = dict(attrs).get("id") or ""
        if tag == "svg":
            self.plots[named.removeprefix("plot-")] = []
        elif "svg" in self.open and self.plots:
            list(self.plots.values())[-1].append(tag)
        if tag not in VOID | UNCLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(report: Bench) -> Reader:
    reader = Reader()
    reader.feed(page.render(report))
    reader.close()
    assert reader.open == []
    return reader


def test_every_plot_is_there_and_has_marks() -> None:
    reader = read(whole())
    assert set(reader.plots) == PLOTS
    assert {} == {name: tags for name, tags in reader.plots.items() if len(set(tags) & DRAWN) < 2}


def test_nothing_is_fetched_and_nothing_is_run() -> None:
    reader = read(whole())
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert [] == [
        pair for pair in reader.attributes if pair[0] in {"src", "href", "xlink:href"} or pair[0].startswith("on")
    ]
    assert not re.search(r"url\(|@import|https?://", page.render(whole()))


def test_the_peer_matrix_has_a_cell_for_each_ordered_pair() -> None:
    assert read(whole()).plots["peer"].count("rect") == 8 * 7


def only(run: Bench, program: str, **data: object) -> Bench:
    of = [one for one in run.results if one.program == program and data.items() <= one.data.items()]
    return replace(run, results=tuple(of))


def test_one_size_is_no_curve() -> None:
    """A dot alone, of an axis that has one place, says nothing."""
    reader = read(only(samples.run(1), "memory", size_bytes=64 << 20))
    assert "circle" not in reader.plots["memory"]
    assert "rect" in reader.plots["memory"]


def test_the_change_has_a_scale() -> None:
    drawn = plots.changes("changes", "", [plots.Change("a", -0.1, 0.01, 0.05, "regression", "")])
    assert re.findall(r">([+-][\d.]+) %</text>", drawn)[:6] == ["-2.5", "-5", "-7.5", "+2.5", "+5", "+7.5"]


def test_figures_that_share_a_bar_are_counted_as_such() -> None:
    """Eight GPUs, a case on each and one over all: nine figures, two bars."""
    assert "9 figures are worse, of 2 cases on several GPUs" in page.render(whole())
    found = whole().comparison
    assert found is not None
    first = next(change for change in found.changes if change.verdict == "regression")
    assert page.regressed(replace(found, changes=(first,), regressions=1), 1) == "1 figure is worse"


def test_a_card_of_each_program_comes_before_a_second_of_one() -> None:
    cards = page.summary(samples.run(8)).partition("<svg")[0]
    assert "all-reduce" in cards
    assert "slowest pair" in cards


@pytest.mark.parametrize(("gpus", "title"), [(0, "The best of each kind"), (1, "Against the limit")])
def test_without_a_known_limit_nothing_is_against_one(gpus: int, title: str) -> None:
    run = samples.run(1)
    assert title in page.summary(
        run if gpus else replace(run, results=tuple(replace(r, limit=None) for r in run.results))
    )


def test_a_name_from_elsewhere_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>\x1b[31m&\"'"
    report = whole()
    gpus = tuple(replace(gpu, name=evil) for gpu in report.provenance.gpus)
    made = replace(
        report, host=evil, notes=(evil,), provenance=replace(report.provenance, gpus=gpus, machine=evil, cpu=evil)
    )
    assert "script" not in read(made).tags
    assert "\x1b" not in page.render(made)


def test_secrets_do_not_reach_the_page() -> None:
    report = replace(whole(), notes=("GET http://u:s3cr3t@h?token=s3cr3t",))
    assert "s3cr3t" not in page.render(report)


def test_a_secret_that_ends_with_its_line_takes_nothing_of_the_page_along() -> None:
    """The page is one line."""
    report = replace(whole(), notes=("torch cannot be imported: cookie: s3cr3t",))
    assert set(read(report).plots) == PLOTS
    assert "s3cr3t" not in page.render(report)


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_any_host_has_a_page(gpus: int) -> None:
    reader = read(samples.run(gpus))
    assert ("peer" in reader.plots) == (gpus > 1)


def test_a_run_that_was_cut_short_says_so() -> None:
    report = samples.run(1)
    programs = tuple(replace(one, status=Done.SKIP, reason="interrupted") for one in report.programs)
    shown = page.render(
        replace(report, results=(), programs=programs, partial=True, notes=("interrupted after 3.0 s",))
    )
    assert ">partial<" in shown
    assert "interrupted after 3.0 s" in shown


@pytest.mark.parametrize(
    ("highest", "expected"), [(1071, [0, 250, 500, 750, 1000, 1250]), (0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, [0, 1])]
)
def test_ticks_are_round_and_reach_the_highest(highest: float, expected: list[float]) -> None:
    assert plots.ticks(highest) == pytest.approx(expected)


# ---- a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What Debian's Chromium makes of the page, in a network namespace without any interface up."""
    browser = shutil.which("chromium")
    if browser is None:
        missing("chromium (apt-get install chromium)")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "bench.html").write_text(page.render(whole()))
    shot = folder / "shot.png"
    common = [
        str(browser),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    common += [f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--window-size=920,4000"]
    alone = ["unshare", "--net"] if os.geteuid() == 0 else []
    said = []
    for what in ("--dump-dom", f"--screenshot={shot}"):
        ran = subprocess.run(
            [*alone, *common, what, f"file://{folder}/bench.html"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        said.append(ran)
    return {"dom": said[0].stdout, "log": said[0].stderr + said[1].stderr, "shot": shot.read_bytes()}


@pytest.mark.system
def test_a_browser_without_network_shows_every_plot(opened: dict[str, object]) -> None:
    dom = str(opened["dom"])
    assert set(re.findall(r'<svg id="plot-([\w-]+)"', dom)) == PLOTS
    assert "<table>" in dom


@pytest.mark.system
def test_a_browser_has_nothing_to_complain_of(opened: dict[str, object]) -> None:
    """Of the page, that is: the browser's own pages miss the network that it does not have."""
    lines = [line for line in str(opened["log"]).splitlines() if "CONSOLE" in line]
    assert [] == [line for line in lines if "source: chrome://" not in line]


@pytest.mark.system
def test_the_screenshot_is_of_a_page_and_not_of_nothing(opened: dict[str, object]) -> None:
    """An empty page of this size compresses to 15 KB; the plots and tables of a whole one do not."""
    shot = opened["shot"]
    assert isinstance(shot, bytes)
    assert shot.startswith(b"\x89PNG")
    assert int.from_bytes(shot[16:20], "big") == 920
    assert len(shot) > 100_000
