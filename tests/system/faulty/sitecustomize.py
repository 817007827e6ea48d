"""Makes the ranks of one host faulty, by its environment: loaded by every Python that has this folder on its path.

``LAB_FAULT``: kill, stop, segv (at the first all-reduce), wrong (every collective sends a wrong word), sleep (every
all-reduce waits); ``LAB_FROM``: only in worlds of so many ranks; ``LAB_AFTER``: so many all-reduces of 64-bit words are
well before the first fault (a bench begins each case with one). The program under test knows nothing of it.
"""

import os
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TARGET = "torch.distributed.distributed_c10d"


def spoil(module: Any, fault: str) -> None:
    """Wrap the two collectives of `module`."""
    plain_reduce, plain_gather = module.all_reduce, module.all_gather
    agreed = 0

    def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal agreed
        agreed += tensor.dtype.itemsize == 8
        spared = agreed <= int(os.environ.get("LAB_AFTER", "-1"))
        if spared or module.get_world_size() < int(os.environ.get("LAB_FROM", "1")):
            return plain_reduce(tensor, *args, **kwargs)
        if fault in ("kill", "segv", "stop"):
            number = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}[fault]
            os.kill(os.getpid(), number)
        if fault == "sleep":
            time.sleep(0.05)
        if fault == "wrong" and tensor.dtype.itemsize < 8:
            tensor[0] += 1
        return plain_reduce(tensor, *args, **kwargs)

    def all_gather(into: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if fault == "wrong" and module.get_world_size() >= int(os.environ.get("LAB_FROM", "1")):
            tensor = tensor.clone()
            tensor[0] += 1
        return plain_gather(into, tensor, *args, **kwargs)

    module.all_reduce, module.all_gather = all_reduce, all_gather


class Spoiled(Loader):
    def __init__(self, plain: Any, fault: str) -> None:
        self.plain = plain
        self.fault = fault

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.plain.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.plain.exec_module(module)
        spoil(module, self.fault)


class Spoiler(MetaPathFinder):
    def __init__(self, fault: str) -> None:
        self.fault = fault

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != TARGET:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Spoiled(spec.loader, self.fault)
        return spec


if fault := os.environ.get("LAB_FAULT"):
    sys.meta_path.insert(0, Spoiler(fault))
