"""Reports whose every string is as bad as a host, a service or a user can make it, with secrets planted in them."""

from hypothesis import strategies as st

from probe.model import Cause, Outcome, Profile, Reference, Report, Severity, Status, Verdict, Who
from tests.report.samples import GPUS

SECRET = "hunter2"
PIECES = (
    *("\n", "\r\n", "\t", "\x00", "\x1b[2J", "\x85", "\u2028", "\u202e", "\udcff", "\ufffe", "\uffff", "\U0001f4a5"),
    *("|", "'", '"', "=", ";", ",", "\\", "{", "}", "<a>", "&", "]]>", "<![CDATA[", "# EOF", "\\n", "NaN", "é", "a b"),
    f" token={SECRET} ",
    f" http://u:{SECRET}@h/ ",
    f" Authorization: Bearer {SECRET}\n",
    f" --password {SECRET} ",
)
words = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)
ids = st.sampled_from(["nvml.temperature", "nvml.memory", "torch.tensor", "service.http.web"]) | words
targets = st.sampled_from(["", "gpu:*", "cpu:0", *GPUS]) | words | words.map("gpu:{}".format)
keys = st.sampled_from(["gpu_celsius", "memory_celsius", "used_bytes", "load_percent", "took_s", "url"]) | words
numbers = st.floats() | st.integers() | st.sampled_from([10**400, 2**64, -(10**400)])
seconds = st.floats(0, 1e6) | st.just(float("nan"))

outcomes = st.builds(
    Outcome,
    ids,
    targets,
    st.sampled_from(Status),
    st.sampled_from(Severity),
    words,
    seconds,
    seconds,
    st.dictionaries(keys, words | numbers | st.booleans() | st.none(), max_size=4),
)
causes = st.builds(
    Cause,
    st.sampled_from(["GPU_DRIVER_STUCK", "NVML_18"]) | words,
    words,
    words,
    st.sampled_from(Who),
    st.lists(st.builds(Reference, ids, targets), min_size=1, max_size=3).map(tuple),
)
reports = st.builds(
    Report,
    words,
    words,
    words,
    st.sampled_from(Profile),
    st.sampled_from(Verdict),
    st.integers(0, 255),
    seconds,
    seconds,
    st.just("2026-11-23T15:00:00.250+01:00") | words,
    st.lists(causes, max_size=3).map(tuple),
    st.lists(outcomes, max_size=6, unique_by=lambda seen: (seen.id, seen.target)).map(tuple),
    st.lists(words, max_size=2).map(tuple),
)
