"""The image that the project's own Dockerfile makes, as the documentation says for a build without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NOT_KNOWN_TO_DEBIAN = " --start-interval=10s"
"""Needs Docker 25, and Debian 12 has 20.10. The whole line is read by a linter, in test_callers.py."""
BASE = ("ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin", "USER 65534", "WORKDIR /tmp", 'CMD ["sleep", "1000"]')
"""What the base image says of itself, as `docker import` takes it."""


def stage(folder: Path) -> None:
    """Put there what `docker build` is given: as much of a checkout as the Dockerfile copies, and wheels."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("src", "docker"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "wheels"))
    file = folder / "docker" / "Dockerfile"
    text = file.read_text()
    assert text.count(NOT_KNOWN_TO_DEBIAN) == 1
    file.write_text(text.replace(NOT_KNOWN_TO_DEBIAN, ""))
    where = ["--wheel-dir", str(folder / "docker" / "wheels"), str(folder)]
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-build-isolation"]
    argv += ["--constraint", str(REPOSITORY / "constraints.txt"), *where]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def build_argv(context: Path, base_image: str, **arguments: str) -> list[str]:
    given = {
        "BASE_IMAGE": base_image,
        "PYTHON": os.path.realpath(sys.executable),
        "PROBE": "gpu-probe",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/build/docker/wheels",
        **arguments,
    }
    words = [word for name, value in given.items() for word in ("--build-arg", f"{name}={value}")]
    file = context / "docker" / "Dockerfile"
    return ["build", "--file", str(file), "--network", "none", *words, "--tag", "probed", str(context)]
