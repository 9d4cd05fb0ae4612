"""The places that can hold a log, each in the shape of :class:`omniq_file.shelves.shelf.Shelf`.

* :mod:`~omniq_file.shelves.local`: a folder of a disk. Made of ``folders`` (the way into it), ``turn`` (whose turn it is, and
  that something is new) and ``mounts`` (what it lies on).
* :mod:`~omniq_file.shelves.in_process`: memory, and whatever else fsspec reaches, for one process.
* :mod:`~omniq_file.shelves.objects`: what buckets have in common; ``s3``, ``gcs`` and ``azure`` know one client library each.
  Beside it are ``bucket`` (where), ``store_options`` (as whom, and how patiently) and ``store_errors``.
"""
