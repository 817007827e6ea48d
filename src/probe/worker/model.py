"""Does a model that the user names load, and is one forward pass of the right shape and finite? Forked, like tensor.py.

::

    torchscript   path             torch.jit.load                 carries code: only with trust
    export        path             torch.export.load              carries code: only with trust
    safetensors   path + factory   tensors, read here, into what the factory makes
    factory       factory          package.module:callable, or with trust /path/file.py:callable

    load --> eval, to the device --> one forward pass under inference_mode --> shapes, finite values

Whose code is run: what stands in the interpreter's own packages was put there by whoever made the image, as torch was,
and naming it is consent. A file elsewhere needs ``trust = true``. For root, whatever does not stand in those packages
must be a file that only root can write, below folders that only root can write, up to the first. A safetensors file is
data whoever wrote it, so every number of it is checked before it is used.

The model is a guest beside somebody's job: its process is the first that the kernel kills for memory, a model for the
CPU sees no GPU, and one for a GPU sees that one only. What it prints goes to stderr, what it raises is its own fault,
also when that is SystemExit; where it hangs or crashes is told by the step.

One record, ``ran``: code 0, or one of `FAILED` and `CUDA_ERROR_OUT_OF_MEMORY` with a `reason`. Standard library and
torch only, Python >= 3.9. Over 300 lines because the reader of safetensors, the last 110 of them, has no other user.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import mmap
import os
import resource
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any, BinaryIO, NamedTuple

import torch

FAILED = 1
CUDA_ERROR_OUT_OF_MEMORY = 2
SEED = 0
"""Of random weights and inputs alike: what a forward pass finds today it finds tomorrow."""
FIRST_KILLED = "1000"
"""/proc/self/oom_score_adj of whoever is to go first; raising one's own needs no right."""
SHOWN = 3
MOST_TEXT = 400
MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
"""CUDA's, cuBLAS's and the CPU allocator's words."""


class Refusal(Exception):
    """Why the model is not well: the word for the report, and one line."""

    def __init__(self, reason: str, text: str, code: int = FAILED) -> None:
        self.reason, self.text, self.code = reason, text, code
        super().__init__(text)


def main(child: Any, job: dict[str, Any]) -> None:
    """Load and run one model; `job` is ``{"target": "<check>@<device>", **the check's options}``."""
    on_gpu = job["target"].rpartition("@")[2].startswith("gpu:")
    be_a_guest(on_gpu)
    data: dict[str, Any] = {}
    try:
        run(child, job, "cuda" if on_gpu else "cpu", data)
    except Refusal as refusal:
        text = refusal.text.encode("utf-8", "replace").decode()  # a lone surrogate is no JSON
        child.say("ran", code=refusal.code, text=text[:MOST_TEXT], reason=refusal.reason, **data)
        return
    child.say("ran", code=0, **data)


def be_a_guest(on_gpu: bool) -> None:
    """Whatever the model does, it is not what harms the job beside it."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(FIRST_KILLED)
    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.dont_write_bytecode = True  # nor does it leave files beside the user's own


def run(child: Any, job: dict[str, Any], device: str, data: dict[str, Any]) -> None:
    """Do it all, and put what it took into `data` as it is known; raise `Refusal`."""
    announce = announcing(child, job)
    if device == "cuda":
        announce("context")
        with guest("context", "raised"):
            torch.empty(1, device="cuda")
            torch.cuda.synchronize()
    try:
        announce("load")
        elapsed = child.timed()
        torch.manual_seed(SEED)
        model = LOADERS[job["kind"]](job, device)
        data["load_s"] = round(elapsed(), 6)
        data["parameters"] = parameters(model)
        with guest("load", "raised"):
            inputs = [made(wanted, device) for wanted in job["input"]]
        announce("forward")
        elapsed = child.timed()
        with guest("forward", "raised"), torch.inference_mode():
            outputs = list(tensors(model(*inputs)))
            wrong = [not_finite(output) for output in outputs]  # reading this waits for the device
        data["forward_s"] = round(elapsed(), 6)
    finally:
        data["peak_memory_bytes"] = peak_bytes(device)
    data["output_shapes"] = ", ".join(shown(output.shape) for output in outputs)
    judge(outputs, wrong, job["output_shape"])


def announcing(child: Any, job: dict[str, Any]) -> Callable[[str], None]:
    """Steps are said for this process, whose end they explain, and for the check, whose own time may be up first."""
    check_id = job["target"].rpartition("@")[0]

    def announce(step: str) -> None:
        child.step(step)
        child.step(step, check_id)

    return announce


@contextmanager
def guest(step: str, reason: str) -> Iterator[None]:
    """Run somebody else's code: all that it raises is a `Refusal`, and a copy of itself that it forked ends here."""
    pid = os.getpid()
    try:
        yield
    except Refusal:
        raise
    except MemoryError as error:
        raise Refusal("out_of_memory", f"{step}: {last_line(error)}") from None
    except BaseException as error:  # noqa: BLE001 - whatever a model raises, SystemExit too, is the finding itself
        text = f"{step}: {last_line(error)}"
        words = str_of(error)
        if any(word in words for word in MEMORY):
            on_gpu = torch.cuda.is_initialized() and MEMORY[2] not in words
            raise Refusal("out_of_memory", text, CUDA_ERROR_OUT_OF_MEMORY if on_gpu else FAILED) from None
        raise Refusal(reason, text) from None
    finally:
        if os.getpid() != pid:
            os._exit(0)


def last_line(error: BaseException) -> str:
    """The exception's own last line, with its type. Of a CUDA error the first: the rest is advice."""
    lines = [line.strip() for line in str_of(error).splitlines() if line.strip()] or [""]
    line = lines[0] if "CUDA" in lines[0] else lines[-1]
    name = type(error).__name__
    return line if line.startswith(f"{name}:") else f"{name}: {line}".rstrip(": ")


def str_of(error: BaseException) -> str:
    """Its text, also where making that raises."""
    return "".join(traceback.format_exception_only(type(error), error)).strip().partition(": ")[2]


# --- loading --------------------------------------------------------------------------------------------------------


def load_torchscript(job: dict[str, Any], device: str) -> Any:
    with code_file(job["path"], job["trust"]) as file, guest("load", "not_loadable"):
        return torch.jit.load(f"/proc/self/fd/{file.fileno()}", map_location=device).eval()


def load_export(job: dict[str, Any], device: str) -> Any:
    """A program knows its devices by itself; its module has no eval()."""
    with code_file(job["path"], job["trust"]) as file, guest("load", "not_loadable"):
        import torch.export

        program = torch.export.load(file)
        if device == "cpu":
            return program.module()
        from torch.export.passes import move_to_device_pass  # since 2.6

        return move_to_device_pass(program, device).module()


def load_safetensors(job: dict[str, Any], device: str) -> Any:
    """The factory's module with the file's tensors in it, all of them and no other."""
    model = call_factory(job)
    if not isinstance(model, torch.nn.Module):
        raise Refusal("not_loadable", f"{job['factory']} returned {type(model).__name__}, no torch.nn.Module")
    found = read_safetensors(job["path"])
    with guest("load", "raised"):
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        fit(found, state)
        model.load_state_dict(found, strict=True)
    return ready(model, device)


def load_factory(job: dict[str, Any], device: str) -> Any:
    return ready(call_factory(job), device)


LOADERS = {
    "torchscript": load_torchscript,
    "export": load_export,
    "safetensors": load_safetensors,
    "factory": load_factory,
}


def ready(model: Any, device: str) -> Any:
    """In eval mode and on its device; what is no module must see to that itself."""
    if not callable(model):
        raise Refusal("not_loadable", f"the factory returned {type(model).__name__}, which cannot be called")
    with guest("load", "raised"):
        return model.eval().to(device) if isinstance(model, torch.nn.Module) else model


def call_factory(job: dict[str, Any]) -> Any:
    where, _, name = job["factory"].rpartition(":")
    file = code_file(where, job["trust"]) if where.startswith("/") else None
    with guest("import", "not_loadable"):
        try:
            module = module_at(where, file) if file else installed(where)
        except ModuleNotFoundError as error:
            if file or not f"{where}.".startswith(f"{error.name}."):
                raise  # it is there, and what it imports is not
            raise Refusal("not_found", f"no module {error.name} in {sys.executable}") from None
    if not callable(make := getattr(module, name, None)):
        raise Refusal("not_found", f"{where} has no callable {name}")
    with guest("factory", "raised"):
        return make(**job["args"])


class Opened(SourceFileLoader):
    """Of a file that is open already: neither another one put in its place since nor the bytecode beside it."""

    def __init__(self, name: str, path: str, file: BinaryIO) -> None:
        super().__init__(name, path)
        self.file = file

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise FileNotFoundError(path)
        return self.file.read()


def module_at(path: str, file: BinaryIO) -> Any:
    """The module in one file; what it imports must be installed, since no folder is put on the path."""
    name = "probe_model_factory"
    with file:
        loader = Opened(name, path, file) if path.endswith(".py") else None
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        if spec is None or spec.loader is None:
            raise Refusal("not_loadable", f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def installed(name: str) -> Any:
    """Import a module by its name, the packages around it first: each is looked at before its code runs."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        inner = ".".join(parts[:count])
        if os.geteuid() == 0 and inner not in sys.modules:
            spec = importlib.util.find_spec(inner)
            for place_ in origins(spec) if spec else ():
                must_be_roots(place_)
        importlib.import_module(inner)
    return sys.modules[name]


def origins(spec: ModuleSpec) -> list[str]:
    """The file of a module, or the folders of a package without one, but for those among the interpreter's own."""
    found = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    site = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
    own = [os.path.realpath(folder) for folder in (sys.prefix, sys.base_prefix, site)]
    return [path for path in found if not any(os.path.realpath(path).startswith(f"{folder}/") for folder in own)]


def fit(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Raise where names or shapes differ. Of tied weights a file need hold only one: the others are put in here."""
    held = {place(state[name]): tensor for name, tensor in found.items() if name in state}
    found.update({name: held[place(value)] for name, value in state.items() if place(value) in held})
    for names, which in ((state.keys() - found.keys(), "missing"), (found.keys() - state.keys(), "not in the model")):
        if names:
            raise Refusal("keys", f"{len(names)} of {len(state)} tensors are {which}: {some(sorted(names))}")
    for name in sorted(state):
        if state[name].shape != found[name].shape:
            raise Refusal("keys", f"{name} is {shown(found[name].shape)}, the model's is {shown(state[name].shape)}")


def place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of one weight; an empty one has no place of its own."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.data_ptr() else (id(tensor),)


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def parameters(model: Any) -> int:
    with suppress(Exception):
        return sum(int(parameter.numel()) for parameter in model.parameters())
    return 0


# --- one forward pass -----------------------------------------------------------------------------------------------


def made(wanted: dict[str, Any], device: str) -> torch.Tensor:
    """One input: filled with a number, else random, whole numbers from 0 to below `below`."""
    dtype, shape = getattr(torch, wanted["dtype"]), wanted["shape"]
    generator = torch.Generator().manual_seed(SEED)
    if wanted["fill"] is not None:
        values = torch.full(shape, wanted["fill"])
    elif dtype.is_floating_point:
        values = torch.randn(shape, generator=generator)
    else:
        values = torch.randint(0, wanted["below"], shape, generator=generator)
    return values.to(dtype).to(device)


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of an output, in their order, also in lists and mappings."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def not_finite(output: torch.Tensor) -> int:
    if not (output.is_floating_point() or output.is_complex()):
        return 0
    eight_bits = output.is_floating_point() and output.element_size() == 1  # few operators take them, by version
    values = output.float() if eight_bits else output
    return int(torch.count_nonzero(~torch.isfinite(values)))


def judge(outputs: list[torch.Tensor], wrong: list[int], wanted: list[Any] | None) -> None:
    """`wanted` is the shape of the first output, or a list of the shapes of all; -1 is any length, None anything."""
    if not outputs:
        raise Refusal("shape", "the forward pass returned no tensor")
    shapes = wanted if wanted and isinstance(wanted[0], list) else None
    if shapes is not None and len(shapes) != len(outputs):
        raise Refusal("shape", f"{len(outputs)} outputs, {len(shapes)} expected")
    for output, shape in zip(outputs, shapes if shapes is not None else [wanted]):
        if shape is not None and not fits(output.shape, shape):
            raise Refusal("shape", f"an output is {shown(output.shape)}, expected {shown(shape)}")
    for number, output in enumerate(outputs):
        if wrong[number]:
            which = f" {number}" if len(outputs) > 1 else ""
            raise Refusal("not_finite", f"{wrong[number]} of {output.numel()} values of output{which} are not finite")


def fits(shape: Any, wanted: list[int]) -> bool:
    return len(shape) == len(wanted) and all(length in (-1, found) for found, length in zip(list(shape), wanted))


def shown(shape: Any) -> str:
    return "x".join("*" if length == -1 else str(length) for length in shape) or "scalar"


def peak_bytes(device: str) -> int:
    """On a GPU what torch allocated there at once, else this process's largest resident set, torch included."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_initialized() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- files ----------------------------------------------------------------------------------------------------------


def code_file(path: str, trust: bool) -> BinaryIO:
    """The file at `path`, if the code in it may be run; the check has said so already, this is the last door."""
    if not trust:
        raise Refusal("untrusted", f"{path} carries code and trust = true is not set")
    file = open(open_file(path), "rb")  # noqa: SIM115 - for whoever asked
    try:
        if os.geteuid() == 0:
            must_be_roots(path, os.readlink(f"/proc/self/fd/{file.fileno()}"))
    except Refusal:
        file.close()
        raise
    return file


def must_be_roots(path: str, opened: str = "") -> None:
    """Refuse what others can change, by its name or where that leads to (`opened`): it, and every folder above.

    In a sticky folder further up nobody can take away what is root's.
    """
    for found in dict.fromkeys((path, opened or os.path.realpath(path))):
        folder = os.path.dirname(found)
        for place_ in (found, folder, *above(folder)):
            if wrong := unsafe(place_, sticky=place_ not in (found, folder)):
                raise Refusal("untrusted", f"{place_} {wrong}: root runs no code that others can change")


def above(folder: str) -> Iterator[str]:
    while (upper := os.path.dirname(folder)) != folder:
        yield (folder := upper)


def unsafe(path: str, sticky: bool = False) -> str:
    """Why root must not trust this file or folder; empty: it may. A sticky one counts: others can still add to it.

    A mode does not count where nobody can write: kubelet gives volumes 0777 and mounts them read-only.
    """
    info = os.stat(path)
    if info.st_uid != 0:
        return f"belongs to uid {info.st_uid}"
    if sticky and info.st_mode & stat.S_ISVTX:
        return ""
    if info.st_mode & 0o022 and not os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"has mode {stat.S_IMODE(info.st_mode):04o}"
    return ""


def open_file(path: str) -> int:
    """A descriptor of a regular file; a FIFO does not block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise Refusal("not_found", f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refusal("not_loadable", f"{path} is no regular file")
    return fd


# --- safetensors: 8 bytes of length, a JSON header, the tensors' bytes ----------------------------------------------

MOST_HEADER_BYTES = 100_000_000
"""The format's own bound."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class Entry(NamedTuple):
    """One tensor: where its bytes are, counted from the header's end."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Malformed(Exception):
    """What is wrong with a file's bytes."""


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, on its pages: nothing is read before it is used. Raise `Refusal`."""
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        base = 8 + header_length(fd, size)
        pages = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        entries = read_header(pages[8:base], size - base)
        return {entry.name: tensor_at(pages, base, entry) for entry in entries}
    except Malformed as wrong:
        raise Refusal("not_loadable", f"{path}: {wrong}") from None
    finally:
        os.close(fd)


def header_length(fd: int, size: int) -> int:
    if size < 8:
        raise Malformed(f"truncated: {size} bytes, not even a header's length")
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > MOST_HEADER_BYTES:
        raise Malformed(f"its header would have {length} bytes, at most {MOST_HEADER_BYTES} are allowed")
    if 8 + length > size:
        raise Malformed(f"truncated: its header ends at byte {8 + length}, the file at {size}")
    return length


def read_header(text: bytes, size: int) -> list[Entry]:
    """The tensors in the order of their bytes, which are `size` and belong to one tensor each."""
    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise Malformed("its header is no JSON object")
    entries = [entry_of(name, said) for name, said in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    at = 0
    for entry in entries:
        if entry.begin != at:
            how = "overlaps the one before it" if entry.begin < at else "leaves bytes unused before it"
            raise Malformed(f"{entry.name} {how}: it begins at {entry.begin}, not {at}")
        if entry.end > size:
            raise Malformed(f"truncated: {entry.name} ends at byte {entry.end} of {size}")
        at = entry.end
    if at != size:
        raise Malformed(f"{size - at} bytes after the last tensor belong to none")
    return entries


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Malformed(f"{next(name for name in names if names.count(name) > 1)} is in its header twice")
    return found


def entry_of(name: str, said: Any) -> Entry:
    """One line of the header; raise where it does not add up."""
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{name} has not exactly dtype, shape and data_offsets")
    if not numbers(said["shape"]) or not numbers(said["data_offsets"]) or len(said["data_offsets"]) != 2:
        raise Malformed(f"{name} has a shape or offsets that are not whole numbers of at least 0")
    word = said["dtype"] if isinstance(said["dtype"], str) else ""
    dtype = getattr(torch, DTYPES.get(word, ""), None)
    if dtype is None:
        raise Malformed(f"{name} is of dtype {str(said['dtype'])[:40]}, which torch {torch.__version__} has not")
    (begin, end), shape = said["data_offsets"], tuple(said["shape"])
    needed = torch.empty(0, dtype=dtype).element_size()
    for length in shape:
        needed *= length
    if end - begin != needed:
        raise Malformed(f"{name} ({word}, {shown(shape)}) has {end - begin} bytes, needs {needed}")
    return Entry(name, dtype, shape, begin, end)


def numbers(said: Any) -> bool:
    return isinstance(said, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in said)


def tensor_at(pages: mmap.mmap, base: int, entry: Entry) -> torch.Tensor:
    """On the file's pages; copied only where the writer did not align it."""
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the pages cannot be written: nobody does
        raw = torch.frombuffer(pages, dtype=torch.uint8, offset=base + entry.begin, count=entry.end - entry.begin)
    size = torch.empty(0, dtype=entry.dtype).element_size()
    aligned = raw if raw.data_ptr() % size == 0 else raw.clone()
    return aligned.view(entry.dtype).view(entry.shape)
