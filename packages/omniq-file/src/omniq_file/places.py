"""Which shelf belongs to which URL. The modules of object stores are imported when they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from omniq_core import OptionError, redact
from omniq_file.options import FileOptions
from omniq_file.shelves.in_process import InProcessShelf
from omniq_file.shelves.local import LocalShelf

if TYPE_CHECKING:
    from omniq_file.shelves.shelf import Shelf

__all__ = ["shelf_of"]

_OBJECT_STORES = {
    "s3": ("omniq_file.shelves.s3", "S3Shelf"),
    "s3a": ("omniq_file.shelves.s3", "S3Shelf"),
    "gs": ("omniq_file.shelves.gcs", "GCSShelf"),
    "gcs": ("omniq_file.shelves.gcs", "GCSShelf"),
    "abfs": ("omniq_file.shelves.azure", "AzureShelf"),
    "abfss": ("omniq_file.shelves.azure", "AzureShelf"),
    "az": ("omniq_file.shelves.azure", "AzureShelf"),
}


def shelf_of(options: FileOptions, place: str) -> Shelf:
    """A shelf for ``place``, not open yet.

    Raises:
        OptionError: no storage that can be used safely.
    """
    scheme = options.scheme
    if scheme == "file":
        return LocalShelf(place, fsync=options.fsync, allow_network_fs=options.allow_network_fs)
    if scheme in _OBJECT_STORES:
        from omniq_file.shelves.bucket import Bucket

        module, name = _OBJECT_STORES[scheme]
        bucket, _, path = place.partition("://")[2].partition("/")
        shelf: Shelf = getattr(import_module(module), name)(Bucket(bucket, path.strip("/")), options)
        return shelf
    if scheme == "memory" or options.single_process:
        return InProcessShelf(place, options.hidden)
    raise OptionError(
        f"file: {redact(options.base_dir)} is none of the storages that are known to let only one process create a file: "
        "a local folder, s3://, gs://, abfs://. Set single_process=True if only one process will ever use it"
    )
