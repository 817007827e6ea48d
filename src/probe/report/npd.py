"""The report for node-problem-detector: `Report` -> one line, the reason in CamelCase first.

https://github.com/kubernetes/node-problem-detector/blob/master/docs/custom_plugin_monitor.md: of a custom plugin's
output the first 80 bytes (`max_output_length`) become the message of the node's condition, cut anywhere.
"""

import re

from probe.model import Report, Verdict
from probe.report.text import Say, headline, speaker

LIMIT_BYTES = 80
LIMIT_REASON = 60  # leaves words to any reason; the longest of the catalogue has 26 characters


def encode(report: Report) -> bytes:
    """``GpuDriverStuck: pid 812 of an earlier run ...``, at most 80 bytes before the newline."""
    say = speaker(outcome.target for outcome in report.checks)
    return _cut(_line(report, say)) + b"\n"


def _line(report: Report, say: Say) -> str:
    if report.causes and report.verdict is not Verdict.HEALTHY:
        cause = report.causes[0]
        return f"{_camel(say(cause.code)) or _camel(report.verdict.value)}: {say(cause.summary)}"
    verdict, _, words = headline(report, say).partition(": ")
    return f"{_camel(verdict)}: {words}"


def _camel(code: str) -> str:
    """``CUDA_INIT_802`` is ``CudaInit802``; Kubernetes has a reason begin with a letter."""
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"^[^A-Za-z]+", "", code))
    return "".join(word.capitalize() for word in words)[:LIMIT_REASON]


def _cut(line: str) -> bytes:
    """UTF-8 without half a character at its end."""
    whole = line.strip().encode()
    if len(whole) <= LIMIT_BYTES:
        return whole
    return whole[: LIMIT_BYTES - 3].decode(errors="ignore").rstrip().encode() + b"..."
