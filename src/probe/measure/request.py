"""What the command line asks of one bench."""

from msgspec import Struct

from probe.config import Loaded
from probe.measure import shares
from probe.measure.model import Bench


class Request(Struct, frozen=True):
    """The settings, and what is asked beside them."""

    loaded: Loaded
    time_s: float
    entries: tuple[shares.Entry, ...]
    json: str = ""
    html: str = ""
    save: str = ""
    compare: str = ""
    baseline: Bench | None = None
    tolerance: float = 0.05
