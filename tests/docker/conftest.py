"""An engine, and the image that the project's own Dockerfile makes of a small base."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import base
from tests.docker.engine import Engine, NoEngine, running
from tests.docker.image import BASE, build_argv, stage
from tests.system.command import missing


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    """An engine of this session's own."""
    try:
        with running() as engine:
            yield engine
    except NoEngine as error:
        missing(str(error))


@pytest.fixture(scope="session")
def base_image(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    tar = tmp_path_factory.mktemp("base") / "base.tar"
    base.write(tar)
    docker("import", *(word for change in BASE for word in ("--change", change)), str(tar), "base")
    tar.unlink()
    return "base"


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is given to `docker build`."""
    folder = tmp_path_factory.mktemp("context")
    stage(folder)
    return folder


@pytest.fixture(scope="session")
def image(docker: Engine, base_image: str, context: Path) -> str:
    """Built from the project's own Dockerfile, less the one flag."""
    docker(*build_argv(context, base_image))
    return "probed"
