"""The program of ``omniq_conformance.servers.S3Server``: moto's S3 in the foreground. Run as a script, never imported.

moto looks whether a key is there and then writes it, in one of many threads: two writers with ``If-None-Match: *`` may both
win. S3 itself lets exactly one of them win, so here requests are carried out one at a time.

werkzeug closes the connection after each request and waits 10 ms for whatever else might come. S3 keeps connections, and so
does this server: nobody pays for a new connection and a new thread with each request, and clients are tried on connections
that were kept.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any

_parser = argparse.ArgumentParser()
_parser.add_argument("--host", required=True)
_parser.add_argument("--port", required=True, type=int)
_parser.add_argument("--if-none-match", choices=["enforced", "ignored"], default="enforced")
_options = _parser.parse_args()  # before moto is imported, which takes half a second
os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"  # no browser asks

from moto.core import errors  # noqa: E402
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app  # noqa: E402
from moto.s3.responses import S3Response  # noqa: E402
from werkzeug.exceptions import InternalServerError  # noqa: E402
from werkzeug.serving import run_simple  # noqa: E402
from werkzeug.test import run_wsgi_app  # noqa: E402

_one_at_a_time = threading.Lock()


def _exclusive(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: S3Response, request: Any, *arguments: Any) -> Any:
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


def _headers(
    file: IO[bytes], _class: type[http.client.HTTPMessage] = http.client.HTTPMessage
) -> http.client.HTTPMessage:
    """`http.client.parse_headers` without the parser of mails, which takes a sixth of the server's time."""
    message = _class()
    while (line := file.readline(65537)) not in (b"\r\n", b"\n", b""):
        if len(line) > 65536:
            raise http.client.LineTooLong("header line")
        name, _, value = line.decode("iso-8859-1").partition(":")
        message[name] = value.strip()
    return message


class _Handler(MotoRequestHandler):
    """One connection, until the client closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one segment

    def run_wsgi(self) -> None:
        self.environ = environ = self.make_environ()
        # Read to its end before anything is answered: what follows on the connection is the next request.
        length = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        try:
            parts, status, headers = run_wsgi_app(self.server.app, environ, buffered=True)
        except Exception:
            self.log_error("%s", traceback.format_exc())
            parts, status, headers = run_wsgi_app(InternalServerError(), environ, buffered=True)
        content = b"".join(parts)
        code, _, reason = status.partition(" ")
        # The length that it may tell then is of a body that is not sent.
        bare = self.command == "HEAD" or code in ("204", "304")
        if not bare:
            headers["Content-Length"] = str(len(content))
        self.send_response(int(code), reason)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not bare:
            self.wfile.write(content)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        sys.stderr.write(f"{self.log_date_time_string()} {self.requestline} {code}\n")


def main() -> None:
    if _options.if_none_match == "ignored":
        S3Response.put_object = _lie(S3Response.put_object)  # type: ignore[method-assign]
    for name in ("bucket_response", "key_response"):
        setattr(S3Response, name, _exclusive(getattr(S3Response, name)))
    http.client.parse_headers = _headers  # type: ignore[assignment]
    # It makes a new one, of all errors that S3 knows, for each error that it answers.
    errors.ErrorLookupFactory = functools.cache(errors.ErrorLookupFactory)  # type: ignore[assignment,misc]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # S3 alone: moto's own dispatcher lists the folders of all services for each request, a quarter of its time.
    application = create_backend_app("s3")
    application.debug = False  # what goes wrong is logged without
    run_simple(
        _options.host, _options.port, _named_once(application), threaded=True, request_handler=_Handler
    )


if __name__ == "__main__":
    main()
