"""Finding the program that a command is about."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from typing import TYPE_CHECKING

from omniq.cli.failure import USAGE, Failed
from omniq_core.options import suggest

if TYPE_CHECKING:
    from types import ModuleType

    from omniq.app import AsyncOmniQ

__all__ = ["find_application", "open_url"]


def find_application(name: str | None) -> AsyncOmniQ:
    """The program that ``MODULE:ATTRIBUTE`` names, as its async face. Importing the module registers its tasks.

    Raises:
        Failed: there is no such module or attribute, or it cannot be imported.
    """
    if not name:
        raise Failed("which program? Give it as MODULE:ATTRIBUTE, or set OMNIQ_APP", USAGE)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module_name, _, attribute = name.partition(":")
    if not attribute and "." in module_name and importlib_cannot_find(module_name):
        module_name, _, attribute = module_name.rpartition(".")
    module = _import(module_name, name)
    return _pick(module, attribute, name)


def importlib_cannot_find(module: str) -> bool:
    """Whether no module of that dotted name can be found."""
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            file_hint = ""
            if module_name.endswith(".py") or "/" in module_name:
                file_hint = (
                    f"; it is a module's name, such as {module_name.removesuffix('.py').replace('/', '.')!r}"
                )
            raise Failed(
                f"no module named {module_name!r} here ({os.getcwd()}) or installed, for {name!r}{file_hint}",
                USAGE,
            ) from error
        traceback.print_exc()
        raise Failed(f"{module_name!r} needs the module {error.name!r}, which is not there", USAGE) from error
    except Exception as error:
        traceback.print_exc()
        raise Failed(f"importing {module_name!r} failed: {type(error).__name__}: {error}", USAGE) from error


def _pick(module: ModuleType, attribute: str, name: str) -> AsyncOmniQ:
    from omniq.app import AsyncOmniQ
    from omniq.sync import OmniQ

    found = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, (OmniQ, AsyncOmniQ)) and not key.startswith("__")
    }
    if attribute:
        value: object = module
        for part in attribute.split("."):
            value = getattr(value, part, None)
        if isinstance(value, OmniQ):
            return value.aio
        if isinstance(value, AsyncOmniQ):
            return value
        hint = suggest(attribute, list(found)) or (f"; it holds {', '.join(found)}" if found else "")
        what = "nothing of that name" if value is None else f"a {type(value).__name__}"
        raise Failed(f"{name!r} must name an OmniQ or AsyncOmniQ, and is {what}{hint}", USAGE)
    programs = {id(value): value for value in found.values()}
    if len(programs) != 1:
        many = (
            f"several ({', '.join(found)}); write {module.__name__}:{next(iter(found))}" if found else "none"
        )
        raise Failed(f"module {module.__name__!r} must hold one OmniQ, and holds {many}", USAGE)
    [only] = programs.values()
    return only.aio if isinstance(only, OmniQ) else only


def open_url(application: str | None, url: str | None) -> AsyncOmniQ:
    """The program of ``--app``, or one for the storage of ``--url``.

    Raises:
        Failed: both or neither is given.
    """
    if url is not None:
        from omniq.app import AsyncOmniQ

        return AsyncOmniQ.from_backend(url)
    if application is None:
        raise Failed(
            "give the program with --app MODULE:ATTRIBUTE (or OMNIQ_APP), or its storage with --url", USAGE
        )
    return find_application(application)
