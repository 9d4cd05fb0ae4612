"""The file and object store backend of OmniQ: tasks, results and events in a local folder, a bucket, or memory."""

from omniq_file.backend import FileBackend
from omniq_file.options import FileOptions

__version__ = "0.1.0"
__all__ = ["FileBackend", "FileOptions"]
