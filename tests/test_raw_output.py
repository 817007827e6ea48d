"""What a foreign program prints becomes its one answer."""

from probe.model import Record
from probe.rig import MAX_OUTPUT_BYTES, _output
from probe.worker.parent import Process


def said(output: bytes, stderr: bytes = b"", status: int = 0) -> Record:
    process = Process("smi", "")
    process.raw = True
    process.output += output
    process.tail += stderr
    return _output(process, status)


def test_status_output_and_stderr_are_the_answer() -> None:
    record = said(b"2\n2\n", b"a warning\n", 14)
    assert ("output", 14, "2\n2\n", {"stderr": "a warning\n"}) == (record.key, record.code, record.text, record.data)
    assert record.elapsed_s >= 0


def test_a_flood_is_cut_and_bytes_that_are_no_text_are_replaced() -> None:
    """A check reads text of a bounded size, whatever a program prints."""
    assert MAX_OUTPUT_BYTES == len(said(b"x" * (MAX_OUTPUT_BYTES + 1)).text)
    assert "\ufffd8\n" == said(b"\xff8\n").text
