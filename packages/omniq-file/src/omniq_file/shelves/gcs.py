"""Google Cloud Storage through gcsfs.

gcsfs finds the credentials, keeps them fresh and makes the session (aiohttp); requests are made on that session, since gcsfs
repeats its own up to six times within half a minute and more, and answers a missing bucket like a missing object.

The class is ``gcsfs.core.GCSFileSystem`` and not ``gcsfs.GCSFileSystem``: the latter asks, by gRPC, what kind of bucket each
one is, and waits for a minute where no Google is listening. (The variable ``GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false`` has
the same effect, but for the whole program of the user, who may need it.) Zonal buckets are not for us in any case: they do
not list objects in order.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.objects import ObjectShelf
from omniq_file.shelves.store_errors import CannotConnect, ConnectionLost, Refused, StoreError
from omniq_file.shelves.store_options import StoreOptions

__all__ = ["GCSShelf"]

CREDENTIALS_CHECK_S = 60.0
"""gcsfs renews credentials five minutes before their end, blocking whoever asks: so a thread asks, every so often."""


class GCSShelf(ObjectShelf):
    """A shelf in a bucket of Google Cloud Storage."""

    product = "GCS"
    extra = "gcs"
    modules = ("gcsfs.core", "aiohttp")
    clouds = (".googleapis.com",)

    def __init__(self, bucket: Bucket, options: StoreOptions) -> None:
        super().__init__(bucket, options)
        self._files: Any = None
        self._session: Any = None
        self._checked = 0.0

    def _where(self) -> str:
        return self._options.endpoint_url or "https://storage.googleapis.com"

    async def _connect(self) -> None:
        import aiohttp
        from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped]

        options = self._options
        token: Any = options.token.reveal() if options.token else None
        if token and token.lstrip().startswith("{"):
            token = json.loads(token)
        if options.anon or (token is None and options.endpoint_url and not self._is_the_cloud):
            token = "anon"

        more: dict[str, Any] = {"project": options.cloud_project} if options.cloud_project else {}

        def make() -> Any:  # it may ask the machine's metadata server who we are
            return GCSFileSystem(
                asynchronous=True,
                skip_instance_cache=True,
                use_listings_cache=False,
                endpoint_url=options.endpoint_url.rstrip("/") or None,
                token=token,
                **more,
                session_kwargs={"timeout": aiohttp.ClientTimeout(sock_connect=options.connect_timeout_s)},
            )

        self._files = await asyncio.to_thread(make)
        self._session = await self._files._set_session()
        self._checked = time.monotonic()

    async def _disconnect(self) -> None:
        session, self._session, self._files = self._session, None, None
        if session is not None:
            await session.close()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        accept: Sequence[int] = (),
    ) -> tuple[int, bytes]:
        if time.monotonic() - self._checked > CREDENTIALS_CHECK_S:
            self._checked = time.monotonic()
            await asyncio.to_thread(self._files.credentials.maybe_refresh)
        sent = dict(headers or {})
        self._files.credentials.apply(sent)
        # Quoted by us: aiohttp would take the %2F of a name for a slash.
        from yarl import URL

        pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in (query or {}).items())
        url = URL(f"{self._files._location}{path}" + (f"?{pairs}" if pairs else ""), encoded=True)
        async with self._session.request(method, url, headers=sent, data=data) as answer:
            self._date = answer.headers.get("Date", "")
            body: bytes = await answer.read()
            if 200 <= answer.status < 300 or answer.status in accept:
                return answer.status, body
            raise _Answered(answer.status, _reason(body))

    @property
    def _bucket_path(self) -> str:
        return f"/storage/v1/b/{quote(self._bucket.name, safe='')}"

    def _object(self, key: str) -> str:
        return f"{self._bucket_path}/o/{quote(key, safe='')}"

    async def _make_bucket(self) -> None:
        body = {"name": self._bucket.name}
        if self._options.region:
            body["location"] = self._options.region
        await self._send(
            "POST",
            "/storage/v1/b",
            query={"project": self._options.cloud_project or self._files.project or ""},
            headers={"Content-Type": "application/json"},
            data=json.dumps(body).encode(),
            accept=(409,),
        )

    async def _create(self, key: str, data: bytes) -> bool:
        return await self._upload(key, data, {"ifGenerationMatch": "0"}) != 412

    async def _overwrite(self, key: str, data: bytes) -> None:
        await self._upload(key, data, {})

    async def _upload(self, key: str, data: bytes, condition: Mapping[str, str]) -> int:
        # In two parts and not as plain media: fake-gcs-server forgets the condition there.
        edge = secrets.token_hex(16).encode()
        parts = (
            b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n"
            b"--%b\r\nContent-Type: application/octet-stream\r\n\r\n%b\r\n--%b--\r\n"
        )
        status, _ = await self._send(
            "POST",
            f"/upload{self._bucket_path}/o",
            query={"uploadType": "multipart", **condition},
            headers={"Content-Type": f"multipart/related; boundary={edge.decode()}"},
            data=parts % (edge, json.dumps({"name": key}).encode(), edge, data, edge),
            accept=(412,) if condition else (),
        )
        return status

    async def _read(self, key: str, start: int, length: int | None) -> bytes | None:
        headers = {"Accept-Encoding": "identity"}
        if start or length is not None:
            headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        status, body = await self._send(
            "GET", self._object(key), query={"alt": "media"}, headers=headers, accept=(404, 416)
        )
        return None if status == 404 else b"" if status == 416 else body

    async def _list(self, prefix: str, after: str, limit: int) -> list[str]:
        found: list[str] = []
        query = {"prefix": prefix, "fields": "items(name),nextPageToken"}
        if after:
            query["startOffset"] = after  # and this very one, if it is still there
        while True:
            query["maxResults"] = str(min(1000, limit - len(found) + 1))
            _, body = await self._send("GET", f"{self._bucket_path}/o", query=query)
            page = json.loads(body)
            found += [item["name"] for item in page.get("items", ()) if item["name"] != after]
            token = page.get("nextPageToken", "")
            if len(found) >= limit or not token:
                return found[:limit]
            query["pageToken"] = token

    async def _delete_one(self, key: str) -> None:
        await self._send("DELETE", self._object(key), accept=(404,))

    def _is_missing_bucket(self, error: StoreError) -> bool:
        return isinstance(error, Refused) and error.status == 404

    def _translate(self, error: Exception, what: str) -> StoreError | None:
        import aiohttp
        import requests.exceptions
        from google.auth.exceptions import GoogleAuthError

        if isinstance(error, _Answered):
            return Refused(
                f"{what} answered {error.status} {error.reason}".rstrip(), error.status, error.reason
            )
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return CannotConnect(f"{what} cannot be reached ({type(error).__name__})")
        if isinstance(error, aiohttp.ClientError | ConnectionError | TimeoutError):
            return ConnectionLost(f"{what}: the connection was lost ({type(error).__name__})")
        if isinstance(error, GoogleAuthError | requests.exceptions.RequestException):
            # While credentials were looked for; what these say may contain them.
            return CannotConnect(f"{what}: no valid credentials ({type(error).__name__})")
        return None


class _Answered(Exception):
    """A status that nobody has asked for."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


def _reason(body: bytes) -> str:
    """The word for an error in an answer of the JSON API, such as ``notFound``."""
    try:
        return str(json.loads(body)["error"]["errors"][0]["reason"])
    except (ValueError, LookupError, TypeError):
        return ""
