"""What one test gives to the author's ``backend(env)``."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import NoReturn

from omniq_core import SYSTEM_CLOCK, Clock, ManualClock

__all__ = ["Env", "Unavailable"]


class Unavailable(Exception):
    """The service that the backend needs is not there. A failure, unless ``--omniq-allow-unavailable`` is given."""


class Env:
    """The place of one test. Two backends that are made with one ``Env`` must see the same storage.

    Args:
        tmp_path: a folder of this test alone.
        manual: whether ``clock`` stands still until the suite moves it.
    """

    def __init__(self, tmp_path: Path, *, manual: bool) -> None:
        self.tmp_path = tmp_path
        self.namespace = f"omq_{uuid.uuid4().hex[:12]}"
        """Unique to this test, of ``[a-z0-9_]``: the project name, schema, key prefix or store name to work in."""
        self.manual = ManualClock() if manual else None
        self.clock: Clock = self.manual or SYSTEM_CLOCK
        """To be passed on as ``clock=``."""

    def unavailable(self, reason: str) -> NoReturn:
        """Ends the test because a service is missing: call it from ``backend`` with what was looked for and where."""
        raise Unavailable(reason)
