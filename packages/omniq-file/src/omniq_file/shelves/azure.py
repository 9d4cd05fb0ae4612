"""Azure Blob Storage, through the client that adlfs is made of.

adlfs itself does not fit: every instance lives until the interpreter ends, where it wants to be closed on an event loop that
is long gone. Its dependency ``azure-storage-blob`` has all that we need; ``omniq[azure]`` brings both.
"""

from __future__ import annotations

import re
from typing import Any

from omniq_core import OptionError
from omniq_file.shelves.bucket import Bucket
from omniq_file.shelves.objects import ObjectShelf
from omniq_file.shelves.store_errors import CannotConnect, ConnectionLost, Refused, StoreError
from omniq_file.shelves.store_options import StoreOptions

__all__ = ["AzureShelf"]

ONE_PUT = 64 * 1024 * 1024
"""Up to here a blob is created by one request; larger ones would be put together from blocks."""


class AzureShelf(ObjectShelf):
    """A shelf in a container of Azure Blob Storage."""

    product = "Azure"
    extra = "azure"
    modules = ("azure.storage.blob.aio", "aiohttp")
    clouds = (".core.windows.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net")

    def __init__(self, bucket: Bucket, options: StoreOptions) -> None:
        super().__init__(bucket, options)
        self._service: Any = None
        self._container: Any = None
        self._credential: Any = None

    def _where(self) -> str:
        options = self._options
        if options.endpoint_url:
            return options.endpoint_url
        if options.connection_string is not None:
            parts = [part.partition("=") for part in options.connection_string.reveal().split(";")]
            fields = {name: value for name, _, value in parts}
            if "BlobEndpoint" in fields:
                return fields["BlobEndpoint"].partition("?")[0]
            name, suffix = fields.get("AccountName", ""), fields.get("EndpointSuffix", "core.windows.net")
            return f"{fields.get('DefaultEndpointsProtocol', 'https')}://{name}.blob.{suffix}"
        if not options.account_name:
            raise OptionError("Azure needs account_name, endpoint_url or connection_string")
        return f"https://{options.account_name}.blob.core.windows.net"

    async def _connect(self) -> None:
        from azure.storage.blob.aio import BlobServiceClient

        options = self._options
        settings: dict[str, Any] = {
            "retry_total": 0,
            "retry_connect": 0,
            "retry_read": 0,
            "retry_status": 0,
            "connection_timeout": options.connect_timeout_s,
            "read_timeout": options.timeout_s,
            "max_single_put_size": ONE_PUT,
            "max_single_get_size": ONE_PUT,
        }
        if options.connection_string is not None:
            self._service = BlobServiceClient.from_connection_string(
                options.connection_string.reveal(), **settings
            )
        else:
            self._service = BlobServiceClient(self._where(), credential=self._who(), **settings)
        self._container = self._service.get_container_client(self._bucket.name)

    def _who(self) -> Any:
        options = self._options
        if options.account_key is not None:
            name = options.account_name or re.split(r"[./]", self._where().partition("://")[2])[0]
            return {"account_name": name, "account_key": options.account_key.reveal()}
        if options.sas_token is not None:
            return options.sas_token.reveal().lstrip("?")
        if options.anon:
            return None
        from azure.identity.aio import DefaultAzureCredential

        self._credential = DefaultAzureCredential()
        return self._credential

    async def _disconnect(self) -> None:
        service, self._service, self._container = self._service, None, None
        credential, self._credential = self._credential, None
        if service is not None:
            await service.close()
        if credential is not None:
            await credential.close()

    async def _make_bucket(self) -> None:
        from azure.core.exceptions import ResourceExistsError

        try:
            await self._container.create_container()
        except ResourceExistsError as error:
            if _code(error) != "ContainerAlreadyExists":
                raise

    async def _create(self, key: str, data: bytes) -> bool:
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

        try:
            await self._container.upload_blob(key, data, overwrite=False)
            return True
        except (ResourceExistsError, ResourceModifiedError) as error:
            if _code(error) in ("BlobAlreadyExists", "ConditionNotMet"):
                return False
            raise

    async def _overwrite(self, key: str, data: bytes) -> None:
        await self._container.upload_blob(key, data, overwrite=True)

    async def _read(self, key: str, start: int, length: int | None) -> bytes | None:
        from azure.core.exceptions import HttpResponseError

        try:
            part = {"offset": start, "length": length} if start or length is not None else {}
            stream = await self._container.download_blob(key, **part)
            data: bytes = await stream.readall()
            return data
        except HttpResponseError as error:
            if _code(error) == "BlobNotFound":
                return None
            if error.status_code == 416:  # it ends before
                return b""
            raise

    async def _list(self, prefix: str, after: str, limit: int) -> list[str]:
        found: list[str] = []
        # Servers older than the parameter do not know it and begin at the beginning: so we also look ourselves.
        more = {"start_from": after} if after else {}
        pages = self._container.list_blob_names(
            name_starts_with=prefix,
            results_per_page=min(5000, limit + 1),
            raw_response_hook=self._answered,
            **more,
        ).by_page()
        async for page in pages:
            found += [name async for name in page if name > after]
            if len(found) >= limit:
                break
        return found[:limit]

    def _answered(self, response: Any) -> None:
        self._date = response.http_response.headers.get("Date", "")

    async def _delete_one(self, key: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            await self._container.delete_blob(key)
        except ResourceNotFoundError as error:
            if _code(error) != "BlobNotFound":
                raise

    def _is_missing_bucket(self, error: StoreError) -> bool:
        return isinstance(error, Refused) and error.code == "ContainerNotFound"

    def _translate(self, error: Exception, what: str) -> StoreError | None:
        from aiohttp import ClientConnectorError, ClientError
        from azure.core import exceptions as azure

        if isinstance(error, azure.ClientAuthenticationError) and error.status_code is None:
            return CannotConnect(f"{what}: no valid credentials")
        if isinstance(error, azure.HttpResponseError):
            status, code = error.status_code or 0, _code(error)
            return Refused(f"{what} answered {status} {code}".rstrip(), status, code)
        if isinstance(error, azure.ServiceRequestTimeoutError) or (
            # It is raised for whatever aiohttp raises; only one kind of that was certainly never sent.
            isinstance(error, azure.ServiceRequestError)
            and isinstance(error.inner_exception, ClientConnectorError)
        ):
            return CannotConnect(f"{what} cannot be reached")
        if isinstance(
            error,
            (
                azure.ServiceRequestError,
                azure.ServiceResponseError,
                ClientError,
                ConnectionError,
                TimeoutError,
            ),
        ):
            return ConnectionLost(f"{what}: the connection was lost ({type(error).__name__})")
        return None


def _code(error: Any) -> str:
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")
