"""What the children of ``test_nursery.py`` do."""

from __future__ import annotations

import importlib
import json
import os
import random
import secrets
import sys
import uuid
from typing import Any

import uuid_utils

from omniq_conformance.nursery_main import ready

IMPORTED_BY = os.getpid()
USED = [random.random(), uuid.uuid4(), uuid_utils.uuid7()]
"""So that each generator has a state that a fork could share."""


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def draw() -> None:
    """Tells numbers that nobody else must draw."""
    say([random.random(), str(uuid.uuid4()), str(uuid_utils.uuid7())[9:], secrets.token_hex(8)])


def echo() -> None:
    ready()
    say(os.getpid())
    for line in sys.stdin:
        say(line.strip())


def look(variable: str) -> None:
    """Tells where it is, and whether it is a fork."""
    say([os.environ.get(variable), os.getcwd(), os.getpid() != IMPORTED_BY])


def end(how: Any) -> None:
    if how == "an exception":
        raise LookupError("on purpose")
    sys.exit(how)


def use(name: str) -> None:
    """Needs a module that it imports late; tells whether it was there, and who has imported it."""
    was_there = name in sys.modules
    module = importlib.import_module(name)
    for _ in range(3):
        ready()  # whoever calls it again tells nothing new
    say([was_there, os.getpid() != module.IMPORTED_BY])
    sys.stdin.readline()
