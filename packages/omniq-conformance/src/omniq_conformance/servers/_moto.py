"""The program of ``omniq_conformance.servers.S3Server``: moto's S3 in the foreground. Run as a script, never imported.

moto looks whether a key is there and then writes it, in one of many threads: two writers with ``If-None-Match: *`` may both
win. S3 itself lets exactly one of them win, so here requests are carried out one at a time.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from moto.s3.responses import S3Response
from werkzeug.serving import run_simple

_one_at_a_time = threading.Lock()


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: S3Response, request: Any, *arguments: Any) -> Any:
        request.get_data()  # the body, before the lock is taken: a client may be slow
        with _one_at_a_time:
            return method(self, request, *arguments)

    return call


def _lie(method: Callable[..., Any]) -> Callable[..., Any]:
    """Like the stores that ignore the header and overwrite."""

    def put_object(self: S3Response) -> Any:
        self.headers = {
            name: value for name, value in self.headers.items() if name.lower() != "if-none-match"
        }
        return method(self)

    return put_object


def _named_once(application: Callable[..., Any]) -> Callable[..., Any]:
    """With an error moto says who it is, and so does werkzeug: strict clients (aiohttp with ``-X dev``) refuse that."""

    def call(environ: Any, start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [pair for pair in headers if pair[0].lower() != "server"], *more)

        return application(environ, start)

    return call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--if-none-match", choices=["enforced", "ignored"], default="enforced")
    options = parser.parse_args()
    if options.if_none_match == "ignored":
        S3Response.put_object = _lie(S3Response.put_object)  # type: ignore[method-assign]
    for name in ("bucket_response", "key_response"):
        setattr(S3Response, name, _exclusive(getattr(S3Response, name)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run_simple(
        options.host,
        options.port,
        # S3 alone: moto's own dispatcher lists the folders of all services for each request, a quarter of its time.
        _named_once(create_backend_app("s3")),
        threaded=True,
        request_handler=MotoRequestHandler,
    )


if __name__ == "__main__":
    main()
