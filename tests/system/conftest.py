"""Fixtures of the tests that run the whole command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command import Command, end


@pytest.fixture
def probe(state: Path) -> Iterator[Command]:
    """`probe` as a call; after the test no process that came of it exists anywhere."""
    command = Command(state)
    yield command
    left = command.left()
    for line in left:
        end(int(line.partition(":")[0]))
    assert [] == left


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the compiled fake libraries."""
    return tmp_path_factory.mktemp("fakes")
