"""How a function gets into a child process: by its name where an import finds it, by value where not.

A child imports what the parent's *registry* holds, never what a message says.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from omniq.errors import NotSerializable
from omniq.runners.frames import LoadFrame
from omniq.task import TaskDefinition, real_main_module

__all__ = ["by_value", "load_frame"]


def load_frame(definition: TaskDefinition[Any, Any]) -> LoadFrame:
    """What to send for a function.

    Raises:
        NotSerializable: it can neither be imported nor be pickled.
    """
    func = definition.func
    module, qualname = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    if module and qualname and "<" not in qualname and _is_importable(definition, module, qualname):
        name = real_main_module() if module == "__main__" else module
        if name != "__main__":
            return LoadFrame(definition.name, name, qualname)
    return by_value(definition, "it is a lambda, a local function, or not found in its module")


def _is_importable(definition: TaskDefinition[Any, Any], module: str, qualname: str) -> bool:
    """Whether an import of that name gives this very function."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is not None and (found is definition.func or getattr(found, "func", None) is definition.func)


def by_value(definition: TaskDefinition[Any, Any], why: str) -> LoadFrame:
    """The function itself.

    Args:
        definition: whose function.
        why: why it is not imported, for the message.

    Raises:
        NotSerializable: it cannot be pickled, or cloudpickle is not there.
    """
    if importlib.util.find_spec("cloudpickle") is None:
        raise NotSerializable(
            f"the task {definition.name} (defined at {definition.source}) cannot be imported by a child process "
            f"({why}), so it has to be handed over by value, which needs cloudpickle: "
            'pip install "omniq[cloudpickle]". Or define it at the top level of a module'
        )
    import cloudpickle  # type: ignore[import-untyped]

    # Wholly by value: cloudpickle would otherwise name the module, and the child cannot import it, or we were not here.
    module = sys.modules.get(getattr(definition.func, "__module__", None) or "")
    registers = module is not None and module.__name__ not in cloudpickle.list_registry_pickle_by_value()
    try:
        if registers:
            cloudpickle.register_pickle_by_value(module)
        return LoadFrame(definition.name, pickled=cloudpickle.dumps(definition.func))
    except Exception as error:
        raise NotSerializable(
            f"the task {definition.name} (defined at {definition.source}) cannot be handed to a child process: "
            f"{type(error).__name__}: {error}. Define it at the top level of a module, without values of its surroundings"
        ) from error
    finally:
        if registers:
            cloudpickle.unregister_pickle_by_value(module)
