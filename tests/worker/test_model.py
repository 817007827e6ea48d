"""Models that load and run, models that do not, and files of tensors that lie about themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from probe.worker import model
from probe.worker.parent import bootstrap
from tests.worker.listener import Listener

CPU = "service.model.x@cpu:0"
ROW = {"shape": [2, 4], "dtype": "float32", "fill": None, "below": 2}


class Tied(nn.Module):  # type: ignore[misc]  # torch is Any where it is not installed
    """Two names for one weight, as a language model has them for its embedding and its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


@pytest.fixture(autouse=True)
def _no_guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a child does to itself is not done to the test's own process; nor does its module stay."""
    monkeypatch.setattr(model, "be_a_guest", lambda on_gpu: None)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    yield
    sys.modules.pop("probe_model_factory", None)


def run(kind: str = "factory", **given_: Any) -> Listener:
    child = Listener()
    job = {"target": CPU, "kind": kind, "path": "", "factory": "torch.nn:Linear", "trust": False, "output_shape": None}
    if kind in ("torchscript", "export"):
        job["factory"] = ""
    made_by = {"args": {"in_features": 4, "out_features": 3}, "input": [ROW]}
    model.main(child, {**job, **made_by, **given_})
    return child


def ran(kind: str = "factory", **given_: Any) -> dict[str, Any]:
    (record,) = run(kind, **given_).records
    assert record["key"] == "ran"
    return record


def refused(kind: str = "factory", **given_: Any) -> tuple[str, str]:
    record = ran(kind, **given_)
    assert record["code"] == model.FAILED
    return record["reason"], record["text"]


def safetensors(*tensors: tuple[str, torch.Tensor], **header: Any) -> bytes:
    """A file of these tensors, in the order given; `header` is laid over its header."""
    data, entries = b"", dict[str, Any]()
    for name, tensor in tensors:
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        word = next(word for word, dtype in model.DTYPES.items() if getattr(torch, dtype, None) == tensor.dtype)
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": word, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    return packed(json.dumps({"__metadata__": {"format": "pt"}, **entries, **header}), data)


def packed(header: str, data: bytes = b"") -> bytes:
    raw = header.encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def linear() -> tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor]]:
    return ("weight", torch.randn(3, 4)), ("bias", torch.zeros(3))


# ------------------------------------------------------------------------------------------------------ that are well


def test_a_factory_alone() -> None:
    """Installed code, its arguments, one forward pass; the steps are said for the process and for the check."""
    child = run(output_shape=[-1, 3])
    (record,) = child.records
    assert (record["code"], record["output_shapes"], record["parameters"]) == (0, "2x3", 15)
    assert record["load_s"] > 0 < record["forward_s"]
    assert record["peak_memory_bytes"] > 10 << 20
    assert child.steps == ["load", "load", "forward", "forward"]


def test_a_factory_in_a_file_that_is_trusted(tmp_path: Path) -> None:
    """With a dataclass, which looks for its own module; and nothing is left beside the file."""
    path = tmp_path / "made.py"
    path.write_text(
        "import dataclasses, torch\n@dataclasses.dataclass\nclass C:\n    n: 'int'\n"
        "def make(n): return torch.nn.Linear(4, C(n).n)\n"
    )
    assert ran(factory=f"{path}:make", args={"n": 5}, trust=True, output_shape=[2, 5])["code"] == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_and_export(tmp_path: Path) -> None:
    """Both in eval mode: what is exported was put into it before."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 4),)), tmp_path / "m.pt2")
    assert ran("export", path=str(tmp_path / "m.pt2"), trust=True, output_shape=[2, 3])["code"] == 0
    script(net, tmp_path / "m.pt")
    assert ran("torchscript", path=str(tmp_path / "m.pt"), trust=True, output_shape=[2, 3])["code"] == 0


def script(net: nn.Module, path: Path) -> None:
    """In a process of its own: TorchScript is deprecated and warns, and there are models of it."""
    torch.save(net.state_dict(), path.with_suffix(".weights"))
    code = (
        "import sys, torch; net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).eval();"
        "net.load_state_dict(torch.load(sys.argv[1] + '.weights')); torch.jit.script(net).save(sys.argv[1] + '.pt')"
    )
    argv = [sys.executable, "-W", "ignore", "-c", code, str(path.with_suffix(""))]
    subprocess.run(argv, check=True, timeout=120, capture_output=True)


def test_the_weights_of_a_safetensors_file_are_what_computes(tmp_path: Path) -> None:
    """The factory's own numbers are gone: with zeros and a NaN in the file, a NaN comes out."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(*linear()))
    assert ran("safetensors", path=str(path), output_shape=[2, 3])["code"] == 0
    path.write_bytes(safetensors(("bias", torch.tensor([0.0, float("nan"), 0.0])), ("weight", torch.zeros(3, 4))))
    assert refused("safetensors", path=str(path)) == ("not_finite", "2 of 6 values of output are not finite")


def test_of_tied_weights_a_file_need_hold_one(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(("embedding.weight", torch.randn(7, 4))))
    tokens = {"shape": [2, 3], "dtype": "int64", "fill": None, "below": 7}
    factory = f"{__name__}:Tied"
    record = ran("safetensors", path=str(path), factory=factory, args={}, input=[tokens], output_shape=[2, 3, 7])
    assert (record["code"], record["parameters"]) == (0, 28)


@pytest.mark.parametrize("word", [word for word, name in model.DTYPES.items() if hasattr(torch, name)])
def test_every_dtype_is_read_bit_by_bit(tmp_path: Path, word: str) -> None:
    """Aligned or not: a byte before it makes every wider word begin at an odd place."""
    dtype = getattr(torch, model.DTYPES[word])
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(6 * size, dtype=torch.uint8) % (2 if dtype == torch.bool else 251)
    wanted = raw.view(dtype).view(2, 3)
    path = tmp_path / "m"
    path.write_bytes(safetensors(("odd", torch.zeros(1, dtype=torch.uint8)), ("x", wanted), ("none", wanted[:0])))
    found = model.read_safetensors(str(path))
    assert (found["x"].dtype, found["x"].shape, found["none"].shape) == (dtype, (2, 3), (0, 3))
    assert found["x"].data_ptr() % size == 0
    assert torch.equal(found["x"].contiguous().flatten().view(torch.uint8), raw)


def test_scalars_and_files_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(safetensors(("one", torch.tensor(2.5))))
    assert model.read_safetensors(str(path))["one"] == 2.5
    path.write_bytes(packed("{}"))
    assert model.read_safetensors(str(path)) == {}


@pytest.mark.parametrize(
    ("wanted", "values"),
    [
        ({"dtype": "int64", "below": 3}, {0, 1, 2}),
        ({"dtype": "bool"}, {False, True}),
        ({"dtype": "bfloat16", "fill": 0.5}, {0.5}),
        ({"dtype": "uint8", "fill": 7}, {7}),
    ],
)
def test_an_input_is_of_its_dtype_and_within_its_bound(wanted: dict[str, Any], values: set[Any]) -> None:
    found = model.made({**ROW, "shape": [64], **wanted}, "cpu")
    assert found.dtype == getattr(torch, wanted["dtype"])
    assert set(found.tolist()) == values


def test_random_inputs_are_the_same_each_time() -> None:
    assert torch.equal(model.made(ROW, "cpu"), model.made(ROW, "cpu"))


def test_tensors_are_found_in_lists_and_mappings() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(model.tensors({"a": one, "b": [two, None, ({"c": three}, "text")]}))
    assert [len(tensor) for tensor in found] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------- that are not well


def make(body: str) -> Callable[[Path], dict[str, Any]]:
    """A trusted factory in a file, of this body."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / "made.py").write_text(f"import os, sys, torch\ndef make(**args):\n    {body}\n")
        return {"factory": f"{folder}/made.py:make", "trust": True, "args": {}}

    return write


@pytest.mark.parametrize(
    ("body", "reason", "text"),
    [
        ("raise ValueError('one\\ntwo')", "raised", "factory: ValueError: two"),
        ("sys.exit(3)", "raised", "factory: SystemExit: 3"),
        ("raise KeyboardInterrupt", "raised", "factory: KeyboardInterrupt"),
        ("raise RuntimeError('CUDA error: bad\\nadvice')", "raised", "factory: RuntimeError: CUDA error: bad"),
        ("raise RuntimeError('\\ud800')", "raised", "factory: RuntimeError: ?"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "raised", "factory: E: <exception str()"),
        ("raise ValueError('x' * 10**7)", "raised", "factory: ValueError: xxx"),
        ("import nosuch", "raised", "factory: ModuleNotFoundError: No module named 'nosuch'"),
        ("return torch.empty(1 << 46)", "out_of_memory", "factory: RuntimeError: [enforce fail"),
        ("return bytearray(1 << 60)", "out_of_memory", "factory: MemoryError"),
        ("return 42", "not_loadable", "the factory returned int, which cannot be called"),
        ("return lambda x: None", "shape", "the forward pass returned no tensor"),
        ("return lambda x: 1 / 0", "raised", "forward: ZeroDivisionError: division by zero"),
        ("return lambda x, y: x", "raised", "forward: TypeError: "),
        ("return lambda x: x / 0", "not_finite", "8 of 8 values of output are not finite"),
        ("return lambda x: [x, (x / 0).half()]", "not_finite", "8 of 8 values of output 1 are not finite"),
        ("return lambda x: x.to(torch.complex64) / 0", "not_finite", "8 of 8 values"),
        ("return lambda x: (x / 0).to(torch.float8_e5m2)", "not_finite", "8 of 8 values"),
        ("return torch.nn.Linear(5, 1)", "raised", "forward: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_a_factory_or_a_forward_pass_does_wrong(tmp_path: Path, body: str, reason: str, text: str) -> None:
    """Every one is one record with the word and one short line, whatever was raised and however long it is."""
    said, words = refused(**make(body)(tmp_path))
    assert (said, words[: len(text)]) == (reason, text)
    assert len(words) <= model.MOST_TEXT
    json.dumps(words).encode()
    assert "\n" not in words


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent is one word; there but broken is another, and names what it lacks."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lame_model.py").write_text("import lame")
    (tmp_path / "half_model.py").write_text("def (:")
    assert refused(factory="nosuch.models:make") == ("not_found", f"no module nosuch in {sys.executable}")
    assert refused(factory="lame_model:make")[0] == "not_loadable"
    assert "No module named 'lame'" in refused(factory="lame_model:make")[1]
    assert refused(factory="half_model:make") == ("not_loadable", "import: SyntaxError: invalid syntax")
    assert refused(factory="torch.nn:Nothing") == ("not_found", "torch.nn has no callable Nothing")


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ([2, 4], "an output is 2x3, expected 2x4"),
        ([3], "an output is 2x3, expected 3"),
        ([-1, 4], "an output is 2x3, expected *x4"),
        ([], "an output is 2x3, expected scalar"),
        ([[2, 3], [1]], "1 outputs, 2 expected"),
    ],
)
def test_an_output_of_another_shape(wanted: list[Any], text: str) -> None:
    record = ran(output_shape=wanted)
    assert (record["reason"], record["text"], record["output_shapes"]) == ("shape", text, "2x3")


@pytest.mark.parametrize("wanted", [None, [2, 3], [-1, -1], [[2, 3]], [[-1, 3]]])
def test_an_output_of_the_right_shape(wanted: list[Any] | None) -> None:
    assert ran(output_shape=wanted)["code"] == 0


@pytest.mark.parametrize("kind", ["torchscript", "export", "safetensors"])
def test_a_file_that_is_absent_or_no_model(tmp_path: Path, kind: str) -> None:
    """A FIFO would hang whoever opens it in the ordinary way."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("this is no model at all")
    assert refused(kind, path=f"{tmp_path}/no", trust=True) == (
        "not_found",
        f"{tmp_path}/no: No such file or directory",
    )
    for name in ("text", "fifo", "."):
        assert refused(kind, path=f"{tmp_path}/{name}", trust=True)[0] == "not_loadable"


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_code_is_not_run_without_trust(tmp_path: Path, kind: str) -> None:
    """The check has refused it before; whoever gets past that does not get past this."""
    (tmp_path / "m").write_bytes(b"")
    assert refused(kind, path=f"{tmp_path}/m")[0] == "untrusted"


def test_a_factory_in_a_file_is_not_run_without_trust(tmp_path: Path) -> None:
    job = make(f"open('{tmp_path}/ran', 'w')")(tmp_path)
    assert refused(**{**job, "trust": False})[0] == "untrusted"
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule")
def test_root_runs_no_file_that_others_can_change(tmp_path: Path) -> None:
    """By its owner, its mode, its folder's mode, or the folder behind a link; mended, it runs."""
    job = make("return torch.nn.Linear(4, 1)")(tmp_path)
    made = tmp_path / "made.py"
    os.chown(made, 1, 1)
    assert refused(**job) == ("untrusted", f"{made} belongs to uid 1: root runs no code that others can change")
    os.chown(made, 0, 0)
    made.chmod(0o666)
    assert refused(**job)[1].startswith(f"{made} has mode 0666")
    made.chmod(0o644)
    tmp_path.chmod(0o1777)
    assert refused(**job)[1].startswith(f"{tmp_path} has mode 1777")
    safe = tmp_path / "safe"
    safe.mkdir(0o700)
    (safe / "link.py").symlink_to(made)
    assert refused(**{**job, "factory": f"{safe}/link.py:make"})[1].startswith(f"{tmp_path} has mode 1777")
    tmp_path.chmod(0o755)
    assert ran(**job)["code"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule")
def test_root_runs_no_file_below_a_folder_that_others_can_change(tmp_path: Path) -> None:
    """Whoever can rename a folder further up puts another in its place; a sticky one is no way to do that."""
    upper = tmp_path / "upper"
    inner = upper / "inner"
    inner.mkdir(parents=True)
    job = make("return torch.nn.Linear(4, 1)")(inner)
    upper.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(inner / "made.py")
    for named in (f"{inner}/made.py", link):
        reason, said = refused(**{**job, "factory": f"{named}:make"})
        assert (reason, said.partition(":")[0]) == ("untrusted", f"{upper} has mode 0777")
    upper.chmod(0o1777)
    assert ran(**job)["code"] == 0
    os.chown(upper, 1, 1)
    assert refused(**job)[1].startswith(f"{upper} belongs to uid 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule")
def test_root_imports_no_package_that_others_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before its code runs, also a folder that is a package without a file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for package in ("open_package", "bare_package"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "models.py").write_text("from torch.nn import Linear\n")
    ran_ = tmp_path / "ran"
    (tmp_path / "open_package/__init__.py").write_text(f"open({str(ran_)!r}, 'w').close()\n")
    for package in ("open_package", "bare_package"):
        (tmp_path / package).chmod(0o777)
        reason, said = refused(factory=f"{package}.models:Linear")
        assert (reason, said.partition(":")[0]) == ("untrusted", f"{tmp_path}/{package} has mode 0777")
        assert not ran_.exists()
        (tmp_path / package).chmod(0o755)
        assert ran(factory=f"{package}.models:Linear")["code"] == 0
        ran_.unlink(missing_ok=True)


def test_the_code_that_runs_is_of_the_file_that_was_looked_at(tmp_path: Path) -> None:
    """Not another one of its name, nor the bytecode beside it."""
    path = tmp_path / "made.py"
    path.write_text("which = 'first'\n")
    file = model.code_file(str(path), trust=True)
    path.unlink()
    path.write_text("which = 'other'\n")
    assert model.module_at(str(path), file).which == "first"


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule")
def test_tensors_are_data_whoever_can_write_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(*linear()))
    path.chmod(0o666)
    assert ran("safetensors", path=str(path))["code"] == 0


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (linear()[:1], "1 of 2 tensors are missing: bias"),
        ((*linear(), ("more", torch.ones(1))), "1 of 2 tensors are not in the model: more"),
        ((("weight", torch.ones(4, 4)), ("bias", torch.ones(3))), "weight is 4x4, the model's is 3x4"),
        ((), "2 of 2 tensors are missing: bias, weight"),
    ],
)
def test_a_file_that_does_not_fit_its_factory(tmp_path: Path, tensors: Any, text: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(*tensors))
    assert refused("safetensors", path=str(path)) == ("keys", text)


def test_a_factory_of_no_module_takes_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors(*linear()))
    text = "torch:relu returned Tensor, no torch.nn.Module"
    assert refused("safetensors", path=str(path), factory="torch:relu", args={"input": torch.ones(1)}) == (
        "not_loadable",
        text,
    )


def x(begin: int = 0, end: int = 4, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [begin, end], **more}


HUGE = (model.MOST_HEADER_BYTES + 1).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "truncated: 0 bytes, not even a header's length"),
        (b"1234567", "truncated: 7 bytes"),
        (HUGE, f"its header would have {model.MOST_HEADER_BYTES + 1} bytes, at most 100000000 are allowed"),
        (b"\xff" * 16, "its header would have 18446744073709551615 bytes"),
        (packed("{}")[:9], "truncated: its header ends at byte 16, the file at 9"),
        (packed("{"), "its header is no JSON"),
        (packed("[" * 100_000), "its header is no JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "its header is no JSON"),
        (packed("[]"), "its header is no JSON object"),
        (packed('{"x": 1}'), "x has not exactly dtype, shape and data_offsets"),
        (packed(json.dumps({"x": x(more=1)}), b"1234"), "x has not exactly"),
        (packed('{"x": {}, "x": {}}'), "x is in its header twice"),
        (packed('{"x": {"dtype": "F32", "dtype": "F16"}}'), "dtype is in its header twice"),
        (packed(json.dumps({"x": x(dtype="F4")}), b"1234"), "x is of dtype F4, which torch"),
        (packed(json.dumps({"x": x(dtype=["F32"])}), b"1234"), "x is of dtype ['F32']"),
        (packed(json.dumps({"x": x(shape=[-1])}), b"1234"), "x has a shape or offsets that are not whole numbers"),
        (packed(json.dumps({"x": x(shape=[1.0])}), b"1234"), "x has a shape or offsets that are not whole numbers"),
        (packed(json.dumps({"x": x(shape=[True])}), b"1234"), "x has a shape or offsets that are not whole numbers"),
        (packed(json.dumps({"x": x(data_offsets=[0])}), b"1234"), "x has a shape or offsets that are not"),
        (packed(json.dumps({"x": x(-4, 0)}), b"1234"), "x has a shape or offsets that are not whole numbers"),
        (packed(json.dumps({"x": x(4, 0)}), b"1234"), "x (F32, 1) has -4 bytes, needs 4"),
        (packed(json.dumps({"x": x(shape=[2])}), b"1234"), "x (F32, 2) has 4 bytes, needs 8"),
        (packed(json.dumps({"x": x(shape=[1 << 62, 1 << 62, 0])}), b""), "x (F32, 46116860184"),
        (packed(json.dumps({"x": x()}), b"123"), "truncated: x ends at byte 4 of 3"),
        (packed(json.dumps({"x": x()}), b"12345"), "1 bytes after the last tensor belong to none"),
        (packed(json.dumps({"x": x(4, 8)}), b"12345678"), "x leaves bytes unused before it: it begins at 4, not 0"),
        (packed(json.dumps({"x": x(), "y": x(2, 6)}), b"123456"), "y overlaps the one before it"),
        (packed(json.dumps({"x": x(), "y": x()}), b"1234"), "y overlaps the one before it"),
    ],
)
def test_a_safetensors_file_that_lies_about_itself(tmp_path: Path, content: bytes, text: str) -> None:
    """Each is told before a byte of its tensors is touched."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    reason, said = refused("safetensors", path=str(path))
    assert (reason, said[len(f"{path}: ") :][: len(text)]) == ("not_loadable", text[: model.MOST_TEXT])


@given(data=st.data())
def test_no_damage_to_a_file_does_more_than_be_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, cut off or added anywhere: tensors that all lie in the file, or one clear refusal."""
    whole = safetensors(("a", torch.ones(3)), ("b", torch.ones(2, 2, dtype=torch.int16)))
    at = data.draw(st.integers(0, len(whole) - 1))
    with_ = data.draw(st.binary(max_size=4))
    damaged = whole[:at] + with_ + whole[at + data.draw(st.integers(0, 4)) :]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged)
    found: dict[str, torch.Tensor] = {}
    with suppress(model.Refusal):
        found = model.read_safetensors(str(path))
    assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= len(damaged)


GUEST = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("model", sys.argv[1])
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
model.be_a_guest(on_gpu=sys.argv[2] == "gpu")
print(open("/proc/self/oom_score_adj").read().strip(), os.environ["CUDA_VISIBLE_DEVICES"], sys.dont_write_bytecode)
"""


@pytest.mark.parametrize(("where", "sees"), [("cpu", ""), ("gpu", "GPU-7")])
def test_a_guest_is_killed_first_and_sees_no_gpu_but_its_own(where: str, sees: str) -> None:
    """A model for the CPU could call ``.cuda()`` and take the memory of a job."""
    argv = [sys.executable, "-c", GUEST, bootstrap("model", (3, 11))[-1], where]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-7"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True, cwd="/")
    assert done.stdout == f"1000 {sees} True\n"
