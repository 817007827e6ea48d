"""Makes torch faulty for one host or one GPU, by the environment: loaded by every Python with this folder on its path.

``LAB_FAULT``: what the ranks do at their first all-reduce: kill, stop, segv, hang (for ever, and say nothing); or wrong
(every collective sends a wrong word), sleep (every all-reduce waits). ``LAB_FROM``: only in worlds of so many ranks;
``LAB_IN=torchrun``: only in ranks that torchrun started; ``LAB_AFTER``: so many all-reduces of 64-bit words are well
before the first fault (a bench begins each case with one).

``LAB_PRODUCT``: what a matrix product does on the GPU of which ``LAB_GPU`` is the UUID: hang, crash, or wrong (one bit
of one word). The program under test knows nothing of either.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}


def spoil_collectives(module: Any) -> None:
    """Wrap the two collectives of torch.distributed."""
    fault = os.environ["LAB_FAULT"]
    plain_reduce, plain_gather = module.all_reduce, module.all_gather
    agreed = 0

    def well() -> bool:
        elsewhere = os.environ.get("LAB_IN") == "torchrun" and "TORCHELASTIC_RUN_ID" not in os.environ
        return elsewhere or module.get_world_size() < int(os.environ.get("LAB_FROM", "1"))

    def all_reduce(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal agreed
        agreed += tensor.dtype.itemsize == 8
        if agreed <= int(os.environ.get("LAB_AFTER", "-1")) or well():
            return plain_reduce(tensor, *args, **kwargs)
        if fault in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault])
        if fault == "hang":
            hang()
        if fault == "sleep":
            time.sleep(0.05)
        if fault == "wrong" and tensor.dtype.itemsize < 8:
            tensor[0] += 1
        return plain_reduce(tensor, *args, **kwargs)

    def all_gather(into: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if fault == "wrong" and not well():
            tensor = tensor.clone()
            tensor[0] += 1
        return plain_gather(into, tensor, *args, **kwargs)

    module.all_reduce, module.all_gather = all_reduce, all_gather


def hang() -> None:
    while True:
        signal.pause()


def spoil_products(module: Any) -> None:
    """Wrap ``torch.mm`` for one GPU: its child alone sees that GPU, and by its UUID."""
    fault, plain = os.environ["LAB_PRODUCT"], module.mm

    def mm(left: Any, right: Any) -> Any:
        made = plain(left, right)
        if left.is_cuda and os.environ.get("CUDA_VISIBLE_DEVICES") == os.environ["LAB_GPU"]:
            if fault == "hang":
                hang()
            if fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            made.view(getattr(module, f"int{8 * made.element_size()}"))[200, 100] ^= 1
        return made

    module.mm = mm


SPOILS: "dict[str, tuple[str, Callable[[Any], None]]]" = {
    "torch.distributed.distributed_c10d": ("LAB_FAULT", spoil_collectives),
    "torch": ("LAB_PRODUCT", spoil_products),
}
"""By module: the variable that asks for it, and what is done once the module is loaded."""


class Spoiled(Loader):
    def __init__(self, plain: Any, spoil: Callable[[Any], None]) -> None:
        self.plain = plain
        self.spoil = spoil

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.plain.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.plain.exec_module(module)
        self.spoil(module)


class Spoiler(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        asked, spoil = SPOILS.get(name, ("", None))
        if spoil is None or not os.environ.get(asked):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Spoiled(spec.loader, spoil)
        return spec


sys.meta_path.insert(0, Spoiler())
