"""What the files child reads: of what a setting names plain files alone, of the kernel's whatever there is."""

import errno
import os
from pathlib import Path

import pytest

from probe.worker.files import MAX_TEXT_BYTES, QUESTIONS

text = QUESTIONS["text"]


def test_a_file_that_a_setting_names_is_read_up_to_a_bound(tmp_path: Path) -> None:
    """Also through links, as Kubernetes mounts its secrets."""
    (tmp_path / "file").write_text("x" * (MAX_TEXT_BYTES + 1))
    (tmp_path / "link").symlink_to("file")
    assert text(str(tmp_path / "link")) == {"content": "x" * MAX_TEXT_BYTES}


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    """The one would be waited for, the other never ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(OSError, match="not a plain file") as raised:
            text(str(tmp_path / name))
        assert raised.value.errno == errno.EINVAL


def test_the_kernels_files_are_read() -> None:
    assert text("/proc/version")["content"].startswith("Linux version")
    assert text("/proc/net/tcp")["content"]
