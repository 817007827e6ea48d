"""Room where torch writes: temporary files, and the caches of torch.hub, Triton, Inductor and the CUDA driver.

Looked at only, never written to, in a child: a mount of a dead server blocks whoever asks. A folder that is not there
yet is made where there is room: the nearest folder above it counts.
"""

from msgspec import Struct

from probe.context import Context
from probe.model import Finding, Job, Record, Scalar, Threshold, passed, skipped, warned
from probe.registry import check

GIB = 1 << 30
CHOSEN_BY = ("TMPDIR", "TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")

LIMITS = {
    "min_free_bytes": Threshold(GIB, "gpud: 500 MB; one torch.compile fills hundreds of MB"),
    "min_free_percent": Threshold(5.0, "imbue: 5 % (gpud: 10 %)"),
    "enough_bytes": Threshold(64 * GIB, "a rule of probe: 5 % of a disk of 10 TB are no want"),
    "min_free_inodes_percent": Threshold(5.0, "kubelet's nodefs.inodesFree"),
}


class Place(Struct, frozen=True):
    """One file system that torch writes to, by the first folder that is on it."""

    folder: str
    needed: bool
    """Torch cannot do without: temporary files, or a folder that somebody chose."""
    at: str
    device: int
    size_bytes: int
    free_bytes: int
    inodes: int
    free_inodes: int
    read_only: bool
    writable: bool

    @property
    def free_percent(self) -> float:
        return 100 * self.free_bytes / self.size_bytes if self.size_bytes else 100.0

    @property
    def free_inodes_percent(self) -> float:
        """Some file systems (btrfs) count none."""
        return 100 * self.free_inodes / self.inodes if self.inodes else 100.0


@check("device.disk", severity="advisory", profiles="RN", uses=("files.disk",), thresholds=LIMITS)
async def disk(context: Context, job: Job) -> Finding:
    """Is there room where torch writes its temporary files and caches?"""
    folders = context.asked.get("disk", ())
    chosen = {context.host.env.get(name, "") for name in CHOSEN_BY} | {"/tmp"}
    places = []
    for folder in folders:
        found = await context.answer("files", f"disk:{folder}")
        if found.code:
            return warned(f"{folder} cannot be looked at: {found.text}", reason="unreadable", folder=folder)
        places.append(_place(folder, folder in chosen, found))
    if not places:
        return skipped("no folder is known that torch would write to")
    for problem in (_unwritable, _full, _without_inodes):
        for place in places:
            if finding := problem(place, job):
                return finding
    least = min(places, key=lambda place: place.free_bytes)
    return passed(f"at least {_gib(least.free_bytes)} free where torch writes ({least.folder})", **_data(least))


def _place(folder: str, needed: bool, found: Record) -> Place:
    return Place(folder, needed, **{name: found.data[name] for name in Place.__struct_fields__[2:]})


def _unwritable(place: Place, job: Job) -> Finding | None:
    """A cache in the home of a user who has none is not missed; what somebody chose is."""
    if not place.needed or (place.writable and not place.read_only):
        return None
    why = "is on a read-only file system" if place.read_only else "cannot be written to by this user"
    return warned(f"{place.folder} {why}", reason="read_only", **_data(place))


def _full(place: Place, job: Job) -> Finding | None:
    least, percent = job.thresholds["min_free_bytes"], job.thresholds["min_free_percent"]
    short = place.free_percent < percent and place.free_bytes < job.thresholds["enough_bytes"]
    if place.read_only or (place.free_bytes >= least and not short):
        return None
    wanted = _gib(least) if place.free_bytes < least else f"{percent:g} %"
    room = f"{_gib(place.free_bytes)} free of {_gib(place.size_bytes)}"
    return warned(f"{place.folder}: {room}, at least {wanted} wanted", reason="full", **_data(place))


def _without_inodes(place: Place, job: Job) -> Finding | None:
    least = job.thresholds["min_free_inodes_percent"]
    if place.read_only or place.free_inodes_percent >= least:
        return None
    room = f"{place.free_inodes} of {place.inodes} inodes free"
    return warned(f"{place.folder}: {room}, at least {least:g} % wanted", reason="inodes", **_data(place))


def _data(place: Place) -> dict[str, Scalar]:
    return {
        "folder": place.folder,
        "at": place.at,
        "size_bytes": place.size_bytes,
        "free_bytes": place.free_bytes,
        "inodes": place.inodes,
        "free_inodes": place.free_inodes,
        "read_only": place.read_only,
        "writable": place.writable,
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
