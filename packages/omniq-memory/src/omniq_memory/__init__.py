"""The memory backend of OmniQ: the reference that every author of a backend reads first."""

from omniq_memory.backend import MemoryBackend, MemoryOptions

__version__ = "0.1.0"
__all__ = ["MemoryBackend", "MemoryOptions"]
