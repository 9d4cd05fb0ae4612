"""Where the server is, and how to greet it: one server, the master that Sentinels name, or a Cluster's node.

Finding it is a few commands on connections of our own, so this driver needs no second client library: redis-py takes a tenth
of a second to import, and since version 8 it repeats calls by itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from omniq_core import Secret
from omniq_redis.errors import CannotConnect, ConnectionLost, Refused
from omniq_redis.options import RedisOptions

if TYPE_CHECKING:
    from omniq_redis.connection import Link

__all__ = ["Address", "Topology"]

Address: TypeAlias = tuple[str, int]
NewLink = Callable[[], "Link"]


class Topology:
    """Finds and greets the server. Shared by the connections of one backend.

    Args:
        options: the settings.
        probe: a key of the project: in a Cluster its node is the one that we want.
    """

    def __init__(self, options: RedisOptions, probe: str) -> None:
        self.options = options
        self._probe = probe
        self._context: ssl.SSLContext | None = None
        self._owner: Address | None = None
        self._known: list[Address] = []

    async def connect(self, new_link: NewLink) -> Link:
        """An open and greeted connection to the server that holds the project. The caller limits the time.

        Raises:
            CannotConnect: no server could be reached.
            Refused: one was, and does not let us in.
        """
        if self.options.sentinel_master:
            return await self._by_sentinel(new_link)
        if self.options.cluster:
            return await self._in_cluster(new_link)
        return await self._first_of(self.options.addresses, new_link)

    def moved(self, message: str) -> Address:
        """Takes the new address from a Cluster's redirection: ``MOVED 1234 10.0.0.5:6379``."""
        host, _, port = message.rpartition(" ")[2].rpartition(":")
        self._owner = (host or self.options.addresses[0][0], int(port))
        return self._owner

    # --- the three ways -----------------------------------------------------------------------------------------

    async def _in_cluster(self, new_link: NewLink) -> Link:
        candidates: list[Address] = [*self._known, *self.options.addresses]
        if self._owner is not None:
            candidates.insert(0, self._owner)
        link = await self._first_of(list(dict.fromkeys(candidates)), new_link)
        try:
            for _ in range(5):
                try:
                    await link.send("EXISTS", self._probe)
                except Refused as error:
                    if error.code != "MOVED":
                        raise
                    link.end(ConnectionLost("not the right node"))
                    link = await self._reach(self.moved(str(error)), new_link)
                else:
                    self._known = await self._nodes(link) or self._known
                    return link
            raise CannotConnect(f"{self.options.describe()}: the nodes send us in a circle")
        except BaseException:  # the time is up, perhaps
            link.end(ConnectionLost("not the right node"))
            raise

    @staticmethod
    async def _nodes(link: Link) -> list[Address]:
        """All nodes, so that one is left to ask when the ones in the settings are gone."""
        try:
            slots: list[list[Any]] = await link.send("CLUSTER", "SLOTS")
        except Refused:
            return []  # an ACL rule; the nodes in the settings must do
        nodes = [node for _, _, *owners in slots for node in owners]
        return list(dict.fromkeys((bytes(n[0]).decode(), int(n[1])) for n in nodes if n[0]))

    async def _by_sentinel(self, new_link: NewLink) -> Link:
        options = self.options
        problems: list[str] = []
        for address in options.addresses:
            try:
                sentinel = await self._reach(address, new_link, sentinel=True)
            except (CannotConnect, Refused, ConnectionLost) as error:
                problems.append(f"{address[0]}:{address[1]}: {error}")
                continue
            try:
                found = await sentinel.send("SENTINEL", "GET-MASTER-ADDR-BY-NAME", options.sentinel_master)
            finally:
                sentinel.end(ConnectionLost("no longer needed"))
            if not found:
                problems.append(f"{address[0]}:{address[1]} watches no {options.sentinel_master!r}")
                continue
            try:
                link = await self._reach((found[0].decode(), int(found[1])), new_link)
            except CannotConnect as error:
                problems.append(f"the master of {options.sentinel_master!r}: {error}")
                continue
            try:
                role = (await link.send("ROLE"))[0]
            except BaseException as error:
                link.end(ConnectionLost("not the master"))
                if not isinstance(error, ConnectionLost):
                    raise
                problems.append(f"the master of {options.sentinel_master!r}: {error}")
                continue
            if role == b"master":
                return link
            # The Sentinel has not heard of the failover yet: the next one may have, and else the next attempt.
            link.end(ConnectionLost("not the master"))
            problems.append(f"{address[0]}:{address[1]} names a server that is a {role.decode()}")
        raise CannotConnect(f"{options.describe()}: {'; '.join(problems)}")

    async def _first_of(self, addresses: list[Address], new_link: NewLink) -> Link:
        problems: list[str] = []
        share_s = self.options.connect_timeout_s / len(addresses)
        for number, address in enumerate(addresses):
            try:
                # One that is silent must leave time for the others; the last one gets all that is left.
                async with asyncio.timeout(share_s if number < len(addresses) - 1 else None):
                    return await self._reach(address, new_link)
            except (CannotConnect, ConnectionLost, TimeoutError) as error:
                if len(addresses) == 1:
                    raise
                problems.append(str(error) or f"{address[0]}:{address[1]} did not answer")
        raise CannotConnect("; ".join(problems))

    # --- one server ---------------------------------------------------------------------------------------------

    async def _reach(self, address: Address, new_link: NewLink, *, sentinel: bool = False) -> Link:
        options, loop = self.options, asyncio.get_running_loop()
        place = options.socket_path or f"{address[0]}:{address[1]}"
        try:
            if options.tls and self._context is None:
                self._context = options.ssl_context()
            link: Link
            if options.socket_path:
                _, link = await loop.create_unix_connection(new_link, options.socket_path)
            else:
                _, link = await loop.create_connection(new_link, *address, ssl=self._context)
        except OSError as error:  # ssl.SSLError is one
            raise CannotConnect(f"{place} cannot be reached: {error}") from error
        try:
            await self._greet(link, sentinel)
        except ConnectionLost as error:
            raise CannotConnect(f"{place} ended the connection at once: {error}") from error
        except BaseException as error:
            link.end(ConnectionLost("not greeted"))
            if isinstance(error, Refused) and error.code == "MAXCLIENTS":
                raise CannotConnect(f"{place}: {error}") from error
            raise
        return link

    async def _greet(self, link: Link, sentinel: bool) -> None:
        options = self.options
        username: str | None = options.sentinel_username if sentinel else options.username
        password: Secret | None = options.sentinel_password if sentinel else options.password
        login = () if password is None else ("AUTH", username or "default", password.reveal())
        await link.send("HELLO", "3", *login, "SETNAME", options.client_name)
        if options.db and not sentinel:
            await link.send("SELECT", options.db)
