"""What the Dockerfile makes of an image: three new things, a health check, and nothing of the image's own changed."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import Engine
from tests.docker.image import build_argv

pytestmark = pytest.mark.system


def inspected(docker: Engine, image: str) -> dict[str, Any]:
    (found,) = json.loads(docker("image", "inspect", image))
    return dict(found)


def test_only_three_things_are_new_in_the_image(docker: Engine, base_image: str, image: str, tmp_path: Path) -> None:
    """The base's layers are there unchanged, and those on top of them hold nothing else: so no package was touched."""
    before, after = (inspected(docker, name)["RootFS"]["Layers"] for name in (base_image, image))
    assert before == after[: len(before)]
    docker("save", "--output", str(tmp_path / "image.tar"), image)
    with tarfile.open(tmp_path / "image.tar") as saved:
        file = saved.extractfile("manifest.json")
        assert file
        (manifest,) = json.load(file)
        new: set[str] = set()
        for layer in manifest["Layers"][len(before) :]:
            with tarfile.open(fileobj=saved.extractfile(layer)) as files:
                new |= {item.name for item in files if not item.isdir()}
    (tmp_path / "image.tar").unlink()  # pytest keeps what tests leave, and this is large
    ours = {name for name in new if name.startswith("opt/probe/")}
    assert "opt/probe/bin/probe" in ours
    assert new - ours == {"usr/local/bin/probe", "etc/probe/config.toml"}


def test_the_image_keeps_its_user_and_settings_and_gains_a_health_check(
    docker: Engine, base_image: str, image: str
) -> None:
    """The check runs as whoever the image's programs run as, without a shell in between."""
    before, after = (inspected(docker, name)["Config"] for name in (base_image, image))
    kept = ("User", "Env", "Cmd", "WorkingDir", "Entrypoint", "Volumes")
    assert {key: before[key] for key in kept} == {key: after[key] for key in kept}
    assert after["User"] == "65534"
    assert after["Healthcheck"] == {
        "Test": ["CMD", "/usr/local/bin/probe", "check", "--exit-codes", "docker"],
        "Interval": 60_000_000_000,
        "Timeout": 10_000_000_000,
        "StartPeriod": 120_000_000_000,
        "Retries": 3,
    }


def test_an_image_without_a_python_for_probe_is_refused_with_what_to_do(
    docker: Engine, base_image: str, context: Path
) -> None:
    """Never half a health check: the build ends, and its last words name the remedy."""
    code, out, err = docker.call(*build_argv(context, base_image, PYTHON="/usr/bin/id"))
    assert code != 0
    assert "install.sh: no Python >= 3.11 with the module venv at /usr/bin/id." in out + err
    assert "--build-arg PYTHON=/path" in out + err
