"""The places that can hold a log: one module each, all in the shape of :class:`omniq_file.shelves.shelf.Shelf`."""
