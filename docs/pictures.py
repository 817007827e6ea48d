"""Renders what probe printed, colours and all, as the pictures of the README.

``python docs/pictures.py``: each ``pictures/<name>.ansi`` is the untouched output of one run of ``FORCE_COLOR=1 probe
check``, and becomes ``pictures/<name>.svg``. The first line of a file's ``.txt`` beside it says which host it was.
"""

import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 150


def render(name: str) -> None:
    title = (PICTURES / f"{name}.txt").read_text().splitlines()[0]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ probe check", style="bold"))
    console.print(Text.from_ansi((PICTURES / f"{name}.ansi").read_text()))
    svg = console.export_svg(title=title, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(svg)


def main() -> None:
    for path in sorted(PICTURES.glob("*.ansi")):
        render(path.stem)


if __name__ == "__main__":
    main()
