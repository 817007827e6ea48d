"""What a terminal is shown meanwhile."""

import pytest

from probe.measure import shares
from probe.measure.model import Done
from probe.measure.progress import SHOWN, Progress


def test_what_progress_shows_fits_its_line() -> None:
    assert [] == [entry.name for entry in shares.ENTRIES if len(f"{entry.name}: {entry.what}") > SHOWN]


def test_words_of_others_are_neither_markup_nor_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rich would raise for a closing tag that nothing opened."""
    monkeypatch.setattr("os.isatty", lambda fd: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = Progress([shares.BY_NAME["host"]])
    shown.begin("host")
    shown.end("host", Done.FAIL, "[/x] \x1b]0;title\x07gone", 0)
    shown.stop()
    said = capfd.readouterr().err
    assert "host: fail ([/x] gone)" in said
    assert "title" not in said
