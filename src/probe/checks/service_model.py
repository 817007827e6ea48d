"""A model that the user names loads and runs (`worker/model.py`): what serves requests must be able to.

In a process of its own, on the first GPU that nobody uses and CUDA has a context on, or on the CPU where no GPU is
expected; its own `timeout` bounds that process. A model never waits for a GPU that is at work: then it is skipped.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from probe import options
from probe.context import Context, Target
from probe.model import Finding, Job, NoAnswer, Record, Scalar, Status, failed, passed, skipped
from probe.options import option
from probe.registry import TARGETS, check

FACTORY = re.compile(r"(/[^\0]+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*", re.ASCII)
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
OF_INPUT = {"shape", "dtype", "fill", "below"}
MOST_INPUTS = 16
MOST_OUTPUTS = 16
MOST_DIMENSIONS = 8
MOST_LENGTH = 1 << 31
MOST_ARGS_BYTES = 16384
"""They reach the worker in one message of 64 KiB."""
OUT_OF_MEMORY = 2


# --- what may be set ------------------------------------------------------------------------------------------------


def factory(value: object) -> str:
    if not FACTORY.fullmatch(text := options.text(value)) or ".." in text.split("/"):
        raise ValueError(value)
    return text


def shape(value: object, least: int = 1) -> tuple[int, ...]:
    length = options.whole(least, MOST_LENGTH)
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        raise ValueError(value)
    return tuple(length(-1 if item == "*" and least == -1 else item) for item in value)


def inputs(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or len(value) > MOST_INPUTS:
        raise ValueError(value)
    return tuple(_input(item) for item in value)


def _input(value: object) -> Mapping[str, Any]:
    said = value if isinstance(value, dict) else {"shape": value}
    if "shape" not in said or said.keys() - OF_INPUT:
        raise ValueError(value)
    dtype, fill, below = said.get("dtype", "float32"), said.get("fill"), said.get("below", 2)
    if dtype not in (*FLOATS, *INTEGERS) or isinstance(fill, str | list | dict):
        raise ValueError(value)
    if dtype in INTEGERS and isinstance(fill, float) and not math.isfinite(fill):
        raise ValueError(value)
    if "below" in said and (dtype in FLOATS or fill is not None):
        raise ValueError(value)
    return {"shape": shape(said["shape"]), "dtype": dtype, "fill": fill, "below": options.whole(1, MOST_LENGTH)(below)}


def output_shape(value: object) -> tuple[Any, ...]:
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        if len(value) > MOST_OUTPUTS:
            raise ValueError(value)
        return tuple(shape(item, -1) for item in value)
    return shape(value, -1)


def arguments(value: object) -> Mapping[str, Any]:
    """Keyword arguments: whatever TOML can hold, but for dates."""
    if not isinstance(value, dict) or not all(str(name).isidentifier() for name in value):
        raise ValueError(value)
    try:
        if len(json.dumps(value)) > MOST_ARGS_BYTES:
            raise ValueError(value)
    except TypeError:
        raise ValueError(value) from None
    return value


def complaint(said: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one way to be wrong each
    kind, path, made_by = said["kind"], said["path"], said["factory"]
    if kind == "factory" and path:
        return "kind factory takes no path"
    if kind != "factory" and not path:
        return f"kind {kind} needs a path"
    if kind in ("factory", "safetensors") and not made_by:
        return f"kind {kind} needs a factory"
    if kind in ("torchscript", "export") and (made_by or said["args"]):
        return f"kind {kind} takes no factory and no args"
    if said["trust"]:
        return ""
    if kind in ("torchscript", "export"):
        return f"a file of kind {kind} carries code: say trust = true, or use safetensors"
    return "a factory in a file is code: say trust = true, or install it" if made_by.startswith("/") else ""


A_SHAPE = "a list of whole numbers"


# --- the check ------------------------------------------------------------------------------------------------------


@check(
    "service.model",
    profiles="RS",
    needs=("torch.import",),
    uses=("model",),
    into=TARGETS,
    complaint=complaint,
    options={
        "kind": option(
            options.one_of("torchscript", "export", "safetensors", "factory"),
            "torchscript, export, safetensors or factory",
            "what is loaded; only safetensors is data, all others are code",
            required=True,
        ),
        "path": option(options.path, options.A_PATH, "the file, for all kinds but factory", ""),
        "factory": option(
            factory,
            '"package.module:callable" or "/path/file.py:callable"',
            "what makes the module; imported by the Python that has torch, never from the working directory",
            "",
        ),
        "args": option(arguments, "a table, at most 16 KiB", "the factory's keyword arguments", {}),
        "input": option(
            inputs,
            "a list of shapes [1, 3, 224, 224] or tables { shape, dtype, fill, below }",
            "what the forward pass is called with: random from a fixed seed, or filled; whole numbers are below "
            "`below` (2)",
            required=True,
        ),
        "output_shape": option(
            output_shape,
            f"{A_SHAPE}, -1 or * for any length, or a list of at most {MOST_OUTPUTS} such lists",
            "the shape of the first output, or of all of them",
        ),
        "device": option(
            options.one_of("auto", "cuda", "cpu"), "auto, cuda or cpu", "auto: a GPU where one is expected", "auto"
        ),
        "trust": option(options.flag, "true or false", "the files named here may run code", False),
    },
)
async def model(context: Context, job: Job) -> Finding:
    """Does this model load and run one forward pass, of the right shape and finite?"""
    if context.torch is None:
        return failed(context.torch_missing, reason="torch_missing")
    imported = await context.answer("torch", "import")  # no need where torch.import rests or was skipped
    if imported.code:
        return failed(f"import torch: {imported.text}", reason="import_error")
    place = await _place(context, job.options["device"])
    if not place.device:
        return skipped(place.reason)
    about: dict[str, Scalar] = {"gpu": place.device} if place.device.startswith("gpu:") else {}
    try:
        ran = await context.answer("model", "ran", f"{job.id}@{place.device}")
    except NoAnswer as reason:
        raise NoAnswer(replace(reason.finding, data={**reason.finding.data, **about})) from None
    return _judged(ran, place.device, about)


def _judged(ran: Record, device: str, about: Mapping[str, Scalar]) -> Finding:
    data: dict[str, Scalar] = {**ran.data, **about}
    if ran.code == OUT_OF_MEMORY:
        data["cuda_code"] = OUT_OF_MEMORY
        return Finding(Status.SKIP, f"out of memory on {device}: {ran.text}", data)
    if ran.code:
        return failed(ran.text, **data)
    took = f"loaded in {data['load_s']:.2f} s, forward in {data['forward_s']:.3f} s on {device}"
    return passed(f"{took}: {data['output_shapes']}, finite", **data)


class _Place(NamedTuple):
    """Where it runs, or why nowhere."""

    device: str
    reason: str = ""


async def _place(context: Context, wanted: str) -> _Place:
    """The CPU where that is asked for or no GPU is expected, else the first GPU that is free and in order."""
    if wanted == "cpu" or (wanted == "auto" and not context.expected.gpus):
        return _Place("cpu:0")
    if not context.expected.gpus:
        return _Place("", f"for a GPU, and none is expected ({context.expected.reason})")
    if context.expected.rocm:
        return _Place("", "a ROCm build of torch: not supported yet")
    reason = "no GPU found"
    try:
        targets = await context.testable.get()
    except NoAnswer as unlisted:
        return _Place("", f"no GPU found: {unlisted.finding.summary}")
    for target in sorted(targets, key=lambda target: not _ready(context, target)):  # one that hangs is asked last
        if not (reason := await _untouchable(context, target)):
            return _Place(target.name)
    return _Place("", reason)


def _ready(context: Context, target: Target) -> bool:
    """Whether it is known by now to be free, with a context made on it."""
    made = context.answers.peek("cuda", "context", target.name)
    return target.skip.now == "" and ("cuda" not in context.workers or (made is not None and not made.code))


async def _untouchable(context: Context, target: Target) -> str:
    """Why the model is not run on this GPU; empty: it is."""
    if target.name in {child.target.rpartition("@")[2] for child in context.stuck}:
        return "needs device.stuck"
    try:
        if busy := await target.skip.get():
            return busy
        if "cuda" in context.workers and (await context.answer("cuda", "context", target.name)).code:
            return "needs cuda.context"
    except NoAnswer:
        return "needs cuda.context"
    return ""
