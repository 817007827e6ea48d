"""service.model: what may be set, where a model runs, and what its records mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe import config
from probe.checks import load
from probe.config import UsageError
from probe.context import Target
from probe.model import Facts, Finding, Record, Status
from probe.registry import TARGETS
from probe.state import Leaving
from tests.checks.asking import GPU, ask

CPU = Facts(device="cpu")
ONE = Facts(gpus_expect=1)
TWO = Facts(gpus_expect=2)
OTHER = f"{GPU}-1"
GOOD = {"load_s": 0.5, "forward_s": 0.25, "peak_memory_bytes": 1 << 20, "parameters": 15, "output_shapes": "2x3"}
IMPORTED = ("torch", Record("import", target="", code=0))
HERE: dict[str, Any] = {"torch": {"version": "2.13.0", "cuda": None}}


def ran(device: str, code: int = 0, text: str = "", **data: Any) -> tuple[str, Record]:
    return "model", Record("ran", target=f"service.model@{device}", code=code, text=text, data={**GOOD, **data})


def context_of(gpu: str, code: int = 0) -> tuple[str, Record]:
    return "cuda", Record("context", target=gpu, code=code)


def asked(*records: tuple[str, Record], facts: Facts = ONE, device: str = "auto", **more: Any) -> Finding:
    options = {"kind": "factory", "device": device}
    return ask("service.model", IMPORTED, *records, facts=facts, options=options, **{**HERE, **more})


# --------------------------------------------------------------------------------------------------- where it runs


def test_without_gpus_it_runs_on_the_cpu() -> None:
    finding = asked(ran("cpu:0"), facts=CPU)
    assert finding.status is Status.PASS
    assert finding.summary == "loaded in 0.50 s, forward in 0.250 s on cpu:0: 2x3, finite"
    assert "gpu" not in finding.data


def test_a_model_for_the_cpu_leaves_gpus_alone() -> None:
    assert asked(ran("cpu:0"), device="cpu").status is Status.PASS


def test_on_a_gpu_host_it_runs_on_a_gpu_and_says_on_which() -> None:
    """Also where CUDA itself is not checked in this run."""
    finding = asked(ran(GPU))
    assert (finding.status, finding.data["gpu"]) == (Status.PASS, GPU)


def test_the_first_gpu_that_is_free_and_in_order_is_taken() -> None:
    """Not one at work, nor one that CUDA cannot make a context on, nor one that nobody knows about yet."""
    others: dict[str, Any] = {"facts": TWO, "workers": ("cuda",)}
    busy = (Target(GPU, skip="busy (612 MiB used)"), Target(OTHER))
    assert asked(context_of(OTHER), ran(OTHER), testable=busy, **others).data["gpu"] == OTHER
    both = (Target(GPU), Target(OTHER))
    sick = (context_of(GPU, 999), context_of(OTHER), ran(OTHER))
    assert asked(*sick, testable=both, **others).data["gpu"] == OTHER
    silent = (Target(GPU, skip=None), Target(OTHER))  # waiting for the first would be for ever
    assert asked(context_of(OTHER), ran(OTHER), testable=silent, **others).data["gpu"] == OTHER


@pytest.mark.parametrize("whose", [("model", f"service.model.x@{GPU}"), ("cuda", GPU), ("nccl", GPU)])
def test_nothing_is_started_where_an_earlier_child_is_stuck(whose: tuple[str, str]) -> None:
    """Whatever it was doing there."""
    finding = asked(ran(GPU), stuck=(Leaving(1, 1, *whose, 0.0),))
    assert (finding.status, finding.summary) == (Status.SKIP, "needs device.stuck")


@pytest.mark.parametrize(
    ("target", "summary"),
    [
        (Target(GPU, skip="busy (612 MiB used)"), "busy (612 MiB used)"),
        (Target(GPU, skip="hidden by CUDA_VISIBLE_DEVICES"), "hidden by CUDA_VISIBLE_DEVICES"),
        (None, "no GPU found"),
    ],
)
def test_no_gpu_for_it_is_a_skip_with_the_reason(target: Target | None, summary: str) -> None:
    """Never on the CPU instead, and never beside a job."""
    finding = asked(ran("cpu:0"), ran(GPU), testable=(target,) if target else ())
    assert (finding.status, finding.summary) == (Status.SKIP, summary)


def test_gpus_that_are_all_sick_are_what_it_needs() -> None:
    """`needs cuda.context` makes it a consequence of what that check says."""
    finding = asked(context_of(GPU, 999), workers=("cuda",))
    assert (finding.status, finding.summary) == (Status.SKIP, "needs cuda.context")


def test_a_model_for_a_gpu_is_skipped_where_none_is_expected() -> None:
    finding = asked(facts=CPU, device="cuda")
    assert (finding.status, finding.summary[:32]) == (Status.SKIP, "for a GPU, and none is expected ")


# ------------------------------------------------------------------------------------------------ what it comes to


@pytest.mark.parametrize(
    "reason", ["not_found", "untrusted", "not_loadable", "keys", "shape", "not_finite", "out_of_memory", "raised"]
)
def test_a_refusal_fails_by_its_word(reason: str) -> None:
    finding = asked(ran(GPU, 1, "one line", reason=reason))
    assert (finding.status, finding.summary) == (Status.FAIL, "one line")
    assert (finding.data["reason"], finding.data["gpu"]) == (reason, GPU)


def test_out_of_memory_on_a_gpu_is_a_skip() -> None:
    """Somebody else may hold the memory: it stays a skip, also where the model is required."""
    finding = asked(ran(GPU, 2, "factory: OutOfMemoryError: CUDA out of memory", reason="out_of_memory"))
    assert (finding.status, finding.data["cuda_code"]) == (Status.SKIP, 2)


def test_a_crash_says_on_which_gpu() -> None:
    """So that it can follow from what is wrong with that GPU."""
    finding = asked()
    assert (finding.status, finding.data["gpu"]) == (Status.UNKNOWN, GPU)


def test_without_torch_there_is_no_model() -> None:
    finding = ask("service.model", facts=CPU, options={"device": "auto"})
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "torch_missing")


def test_an_import_that_raises_is_told_where_nobody_else_does() -> None:
    """torch.import rests, or was skipped by request."""
    broken = ("torch", Record("import", code=1, text="ImportError: libx.so"))
    finding = ask("service.model", broken, facts=CPU, options={"device": "auto"}, **HERE)
    assert (finding.summary, finding.data["reason"]) == ("import torch: ImportError: libx.so", "import_error")


# ------------------------------------------------------------------------------------------------ what may be set

Loaded = Callable[[str], dict[str, Any]]
FACTORY = 'kind = "factory", factory = "a.b:c"'


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    """The options of one [[model]], as a file has it."""

    def load_one(entry: str) -> dict[str, Any]:
        load()
        path = tmp_path / "probe.toml"
        path.write_text(f"model = [{{ name = 'x', {entry} }}]\n")
        found = config.load({}, {}, {}, config_path=str(path), targets=TARGETS)
        return dict(found.config.check("service.model.x").options)

    return load_one


def test_a_model_as_toml_has_it(loaded: Loaded) -> None:
    found = loaded(
        'kind = "safetensors", path = "/m", factory = "a.b:c", args = { n = 1, list = [1, "x"], deep = { y = true } },'
        'input = [[1, 4], { shape = [2], dtype = "int64", below = 30522 }, { shape = [], fill = 1.5 }],'
        'output_shape = ["*", 3, -1], device = "cuda"'
    )
    assert found["args"] == {"n": 1, "list": [1, "x"], "deep": {"y": True}}
    assert found["input"] == (
        {"shape": (1, 4), "dtype": "float32", "fill": None, "below": 2},
        {"shape": (2,), "dtype": "int64", "fill": None, "below": 30522},
        {"shape": (), "dtype": "float32", "fill": 1.5, "below": 2},
    )
    assert (found["output_shape"], found["device"]) == ((-1, 3, -1), "cuda")


def test_shapes_of_several_outputs(loaded: Loaded) -> None:
    assert loaded(f"{FACTORY}, input = [], output_shape = [[1], [-1, 2]]")["output_shape"] == ((1,), (-1, 2))
    assert loaded(f"{FACTORY}, input = [], output_shape = []")["output_shape"] == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('kind = "pickle", input = []', "kind is 'pickle'"),
        (FACTORY, "has no input"),
        ("input = []", "has no kind"),
        ('kind = "factory", input = []', "kind factory needs a factory"),
        (f'{FACTORY}, path = "/m", input = []', "kind factory takes no path"),
        ('kind = "safetensors", path = "/m", input = []', "kind safetensors needs a factory"),
        ('kind = "safetensors", factory = "a:b", input = []', "kind safetensors needs a path"),
        ('kind = "export", path = "/m", input = [], trust = true, args = { a = 1 }', "takes no factory and no args"),
        ('kind = "torchscript", path = "/m", input = []', "carries code: say trust = true"),
        ('kind = "export", path = "/m", input = []', "carries code: say trust = true"),
        ('kind = "factory", factory = "/m.py:make", input = []', "a factory in a file is code: say trust = true"),
        ('kind = "factory", factory = "make", input = []', "factory is 'make'"),
        ('kind = "factory", factory = "./m.py:make", input = []', "factory is"),
        ('kind = "factory", factory = "/a/../m.py:make", input = []', "factory is"),
        ('kind = "factory", factory = "a:b.c", input = []', "factory is"),
        (f"{FACTORY}, input = 1", "input is 1"),
        (f"{FACTORY}, input = [[-1]]", "input is"),
        (f'{FACTORY}, input = [["*"]]', "input is"),
        (f"{FACTORY}, input = [[0]]", "input is"),
        (f"{FACTORY}, input = [[true]]", "input is"),
        (f"{FACTORY}, input = [{{ dtype = 'int64' }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], dtype = 'string' }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], below = 3 }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], dtype = 'int64', fill = 1, below = 3 }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], fill = 'x' }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], size = 3 }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], dtype = 'int64', fill = nan }}]", "input is"),
        (f"{FACTORY}, input = [{{ shape = [1], dtype = 'bool', fill = -inf }}]", "input is"),
        (f"{FACTORY}, input = [], output_shape = {[[1]] * 17}", "at most 16 such lists"),
        (f"{FACTORY}, input = [], output_shape = [1.5]", "output_shape is"),
        (f"{FACTORY}, input = [], output_shape = [[1], 2]", "output_shape is"),
        (f"{FACTORY}, input = [], args = {{ 'not a name' = 1 }}", "args is"),
        (f"{FACTORY}, input = [], args = {{ when = 2024-01-01 }}", "args is"),
        (f"{FACTORY}, input = [], args = {{ x = '{'y' * 20000}' }}", "args is"),
        (f"{FACTORY}, input = [], device = 'cuda:1'", "device is"),
        (f"{FACTORY}, input = [], trust = 'yes'", "trust is"),
    ],
)
def test_what_makes_no_model_is_a_mistake_of_the_caller(loaded: Loaded, entry: str, words: str) -> None:
    """Told before anything runs, exit 2, with what would have been right."""
    with pytest.raises(UsageError) as told:
        loaded(entry)
    assert words in str(told.value)
