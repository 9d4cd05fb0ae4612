"""S3, and the many servers that speak its language, through s3fs.

s3fs finds the credentials and makes the client (aiobotocore); requests go to that client and not through s3fs' own calls,
for three reasons. s3fs repeats requests. It *filters out* parameters that the installed botocore does not know, so that with
an old one ``If-None-Match`` silently vanishes; asked directly, botocore refuses the call. And it turns "there is one
already" (412) and "invalid argument" into the same ``OSError(EINVAL)``.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import random
from collections.abc import Sequence
from typing import Any

from omniq_core import BackendError, ErrorCode
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.objects import ObjectShelf
from omniq_file.shelves.store_errors import CannotConnect, ConnectionLost, Refused, StoreError
from omniq_file.shelves.store_options import StoreOptions

__all__ = ["S3Shelf"]

CONFLICTS = 5
"""How often a creation is repeated that S3 has refused with 409: another one of the same name was under way, and this one
did nothing. The next attempt usually finds the other's object."""


class S3Shelf(ObjectShelf):
    """A shelf in a bucket of S3."""

    product = "S3"
    extra = "s3"
    modules = ("s3fs", "botocore.exceptions", "aiohttp")
    clouds = (".amazonaws.com", ".amazonaws.com.cn")
    delete_batch = 1000

    def __init__(self, bucket: Bucket, options: StoreOptions) -> None:
        super().__init__(bucket, options)
        self._client: Any = None

    def _where(self) -> str:
        return self._options.endpoint_url or "https://s3.amazonaws.com"

    def _prepare(self) -> None:
        for kind in ("service-2", "endpoint-rule-set-1"):
            _descriptions().load_service_model("s3", kind)
        for name in ("endpoints", "partitions", "sdk-default-configuration"):
            _descriptions().load_data(name)
        _hooks()

    async def _connect(self) -> None:
        import s3fs  # type: ignore[import-untyped]
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]
        from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

        options = self._options
        if self._bucket.name.endswith("--x-s3"):
            raise BackendError(
                f"{self._bucket.name!r} is a directory bucket (S3 Express): those list objects in no order; use a general "
                "purpose bucket",
                ErrorCode.UNSUPPORTED,
                "file",
            )
        more: dict[str, Any] = {"region_name": options.region} if options.region else {}
        if self._where().startswith("http://"):
            more["verify"] = (
                False  # there are no certificates; else the system's are read for each client, for 30 ms
            )
        session = AioSession(
            profile=options.profile or None, event_hooks=copy.copy(_hooks()), include_builtin_handlers=False
        )
        session.register_component("data_loader", _descriptions())
        files = s3fs.S3FileSystem(
            asynchronous=True,  # on this event loop, not on fsspec's thread
            skip_instance_cache=True,  # another loop's instance is of no use to us
            use_listings_cache=False,
            endpoint_url=options.endpoint_url or None,
            key=options.key.reveal() if options.key else None,
            secret=options.secret.reveal() if options.secret else None,
            token=options.token.reveal() if options.token else None,
            anon=options.anon,
            client_kwargs=more,
            config_kwargs={
                "connect_timeout": options.connect_timeout_s,
                "read_timeout": options.timeout_s,
                "max_pool_connections": options.connections,
                "retries": {"total_max_attempts": 1},
                # Every file of ours has a checksum of its own, and some servers know none of these.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            session=session,
        )
        self._client = await files.set_session()
        # It asks first whether it may send the body: one more round trip for each commit.
        self._client.meta.events.unregister("before-call.s3", add_expect_header)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _make_bucket(self) -> None:
        region = self._client.meta.region_name
        where = {} if region in (None, "us-east-1", "aws-global") else {"LocationConstraint": region}
        more = {"CreateBucketConfiguration": where} if where else {}
        try:
            await self._client.create_bucket(Bucket=self._bucket.name, **more)
        except self._client.exceptions.ClientError as error:
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    async def _create(self, key: str, data: bytes) -> bool:
        for attempt in range(CONFLICTS):
            try:
                await self._client.put_object(Bucket=self._bucket.name, Key=key, Body=data, IfNoneMatch="*")
                return True
            except self._client.exceptions.ClientError as error:
                status, code = _status(error), _code(error)
                if status == 412:
                    return False
                # 404 without NoSuchBucket: an object of that name was deleted meanwhile.
                conflict = status == 409 or code == "NoSuchKey"
                if not conflict or attempt + 1 == CONFLICTS:
                    raise
            await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise AssertionError("unreachable")

    async def _overwrite(self, key: str, data: bytes) -> None:
        await self._client.put_object(Bucket=self._bucket.name, Key=key, Body=data)

    async def _read(self, key: str, start: int, length: int | None) -> bytes | None:
        span = {}
        if start or length is not None:
            span = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
        try:
            answer = await self._client.get_object(Bucket=self._bucket.name, Key=key, **span)
            async with answer["Body"] as body:
                data: bytes = await body.read()
                return data
        except self._client.exceptions.ClientError as error:
            if _code(error) == "NoSuchKey":
                return None
            if _status(error) == 416:  # it ends before
                return b""
            raise

    async def _list(self, prefix: str, after: str, limit: int) -> list[str]:
        found: list[str] = []
        more: dict[str, Any] = {"StartAfter": after} if after else {}
        while True:
            page = await self._client.list_objects_v2(
                Bucket=self._bucket.name, Prefix=prefix, MaxKeys=min(1000, limit - len(found)), **more
            )
            self._date = page["ResponseMetadata"]["HTTPHeaders"].get("date", "")
            found += [item["Key"] for item in page.get("Contents", ())]
            if len(found) >= limit or not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def _delete_one(self, key: str) -> None:
        await self._client.delete_object(Bucket=self._bucket.name, Key=key)

    async def _delete(self, keys: Sequence[str]) -> None:
        answer = await self._client.delete_objects(
            Bucket=self._bucket.name,
            Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
        )
        for error in answer.get("Errors", ()):  # answered with 200 all the same
            code = error.get("Code", "")
            if code != "NoSuchKey":
                status = {"AccessDenied": 403, "SlowDown": 503}.get(code, 500)
                raise Refused(
                    f"deleting objects: {self.product} at {self._where()} answered {code}", status, code
                )

    def _is_missing_bucket(self, error: StoreError) -> bool:
        return isinstance(error, Refused) and error.code == "NoSuchBucket"

    def _translate(self, error: Exception, what: str) -> StoreError | None:
        from aiohttp import ClientConnectorError, ClientError
        from botocore import exceptions as boto  # type: ignore[import-untyped]

        if isinstance(error, boto.ClientError):
            status, code = _status(error), _code(error)
            return Refused(f"{what} answered {status} {code}", status, code)
        if isinstance(
            error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
        ):
            return Refused(f"{what}: no credentials found; set key and secret, or AWS_ACCESS_KEY_ID ...", 401)
        if isinstance(error, (boto.HTTPClientError, boto.ConnectionError)):
            # Its kinds say too much: a connection that was reset after the request was sent is an EndpointConnectionError.
            inner = error.kwargs.get("error")
            if isinstance(inner, ClientConnectorError) or isinstance(
                error, (boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
            ):
                return CannotConnect(f"{what} cannot be reached ({type(inner or error).__name__})")
            return ConnectionLost(f"{what}: the connection was lost ({type(inner or error).__name__})")
        if isinstance(error, (ClientError, ConnectionError, TimeoutError)):  # while the body was read
            return ConnectionLost(f"{what}: the connection was lost ({type(error).__name__})")
        return None


@functools.cache
def _descriptions() -> Any:
    """botocore's description of S3, read once in a process and not by every client: that takes a tenth of a second."""
    from botocore.loaders import create_loader  # type: ignore[import-untyped]

    return create_loader()


@functools.cache
def _hooks() -> Any:
    """What botocore itself does at each event, put together once in a process: it inspects a hundred signatures for that.
    To be copied, as botocore does for each client, and not to be used."""
    from aiobotocore.hooks import AioHierarchicalEmitter  # type: ignore[import-untyped]
    from aiobotocore.session import AioSession

    hooks = AioHierarchicalEmitter()
    AioSession(event_hooks=hooks)
    return hooks


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
