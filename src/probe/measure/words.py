"""Every word of a result that is shown to people, fit to be shown: others said many of them. Pure."""

from typing import Any

import msgspec

from probe.measure.model import Bench
from probe.redact import clean, redact


def shown(report: Bench) -> Bench:
    """The same, each text in it on one line, without secrets and without what would act on a terminal.

    Text by text, before anything is put around them: of a whole page or a painted line nobody can tell whose part is
    whose, and a secret that ends with its line would take the page along.
    """
    return msgspec.convert(_shown(msgspec.to_builtins(report)), Bench)


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return redact(clean(value))
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]
    return value
