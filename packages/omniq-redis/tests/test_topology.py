"""Encryption, Unix sockets, Sentinels and Clusters: the same driver, found and reached in other ways."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from omniq_conformance.hand import Hand
from omniq_conformance.load import until
from omniq_conformance.servers import RedisServer, ReplyError, ValkeyServer
from omniq_conformance.servers.redis import SpeaksRedis
from omniq_redis import RedisBackend
from omniq_redis.errors import CannotConnect
from omniq_redis.keys import prefix

pytestmark = pytest.mark.slow  # clusters and failovers

Make = Callable[..., RedisBackend]
Blocked = Callable[..., Awaitable[None]]


async def works(backend: RedisBackend) -> None:
    """A task's whole life, with a wake-up and a result."""
    hand = Hand(backend)
    waiting = asyncio.ensure_future(hand.queue.wait(["q"], timeout_s=10))
    record = await hand.put_one()
    assert await waiting
    result = asyncio.ensure_future(backend.result_store().wait([record.id], timeout_s=10))
    await hand.finish(await hand.claim_one(), result=b"r")
    [found] = await result
    assert found is not None
    assert found.body == b"r"


# --- encryption --------------------------------------------------------------------------------------------------
# The servers of the wheels are built without TLS, so it ends in this process, in front of them.


@asynccontextmanager
async def encrypted(server: SpeaksRedis) -> AsyncIterator[int]:
    """The port of a TLS end in front of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("certificate.pem"))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the test is over
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


def test_an_encrypted_connection_is_verified(valkey_server: ValkeyServer, backend_at: Make) -> None:
    certificate = str(Path(__file__).with_name("certificate.pem"))

    async def main() -> None:
        async with encrypted(valkey_server) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            async with backend_at(url, tls_ca_file=certificate) as backend:
                await works(backend)
            with pytest.raises(CannotConnect, match="certificate"):
                await backend_at(url).open()
            by_name = f"rediss://localhost:{port}/0"
            with pytest.raises(CannotConnect, match="certificate"):
                await backend_at(by_name, tls_ca_file=certificate).open()
            async with backend_at(by_name, tls_ca_file=certificate, tls_check_hostname=False):
                pass

    asyncio.run(main())


def test_a_unix_socket_is_as_good(backend_at: Make) -> None:
    folder = tempfile.mkdtemp(prefix="oq")  # the kernel allows a socket's path about a hundred characters
    try:
        path = f"{folder}/s"
        with ValkeyServer(settings={"unixsocket": path}):

            async def main() -> None:
                async with backend_at("redis:///0", socket_path=path) as backend:
                    await works(backend)

            asyncio.run(main())
    finally:
        shutil.rmtree(folder)


# --- Cluster -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module", params=[ValkeyServer, RedisServer])
def cluster(request: pytest.FixtureRequest) -> Iterator[Sequence[SpeaksRedis]]:
    """Three masters with a third of the slots each."""
    kind: type[SpeaksRedis] = request.param
    with ExitStack() as stack:
        buses = [free_port() for _ in range(3)]
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "1000"}
        nodes = [stack.enter_context(kind(settings=settings | {"cluster-port": str(bus)})) for bus in buses]
        for number, node in enumerate(nodes):
            node.command("CLUSTER", "ADDSLOTSRANGE", 5461 * number, 5461 * (number + 1) - 1 + (number == 2))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(nodes[1:], buses[1:], strict=True):
            nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in nodes:
            # It has no signal for us, and looking without a pause would take the core that it needs.
            while b"cluster_state:ok" not in node.command("CLUSTER", "INFO"):  # type: ignore[operator]
                time.sleep(0.02)
        yield nodes


def owner(cluster: Sequence[SpeaksRedis], project: str) -> SpeaksRedis:
    """Which node holds a project."""
    for node in cluster:
        try:
            node.command("EXISTS", prefix(project) + "v")
        except ReplyError as error:
            if not str(error).startswith("MOVED"):
                raise
        else:
            return node
    raise AssertionError("no node holds the project")


def test_a_project_is_found_on_its_node_of_a_cluster(cluster: Sequence[SpeaksRedis], project: str) -> None:
    async def main() -> None:
        owners = set()
        for number in range(6):
            name = f"{project}{number}"
            for seed in cluster:
                async with RedisBackend.from_url(seed.url, cluster=True, project_name=name) as backend:
                    await works(backend)
            owners.add(owner(cluster, name).port)
        assert len(owners) > 1, "several projects spread over the nodes"

    asyncio.run(main())


def test_a_seed_that_is_gone_is_passed_over(cluster: Sequence[SpeaksRedis], backend_at: Make) -> None:
    async def main() -> None:
        url = f"redis://127.0.0.1:1,127.0.0.1:{cluster[1].port}/?cluster=true"
        async with backend_at(url) as backend:
            await works(backend)

    asyncio.run(main())


def test_a_project_whose_slot_moves_is_followed(
    cluster: Sequence[SpeaksRedis], backend_at: Make, project: str, blocked: Blocked
) -> None:
    async def main() -> None:
        old = owner(cluster, project)
        new = next(node for node in cluster if node is not old)
        async with backend_at(old.url, cluster=True) as backend:
            await works(backend)
            waiting = asyncio.ensure_future(backend.queue().wait(["later"], timeout_s=20))
            await blocked(old)
            slot = old.command("CLUSTER", "KEYSLOT", prefix(project))
            assert isinstance(slot, int)
            keys = old.command("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
            new_id, old_id = new.command("CLUSTER", "MYID"), old.command("CLUSTER", "MYID")
            assert isinstance(keys, list)
            assert isinstance(new_id, bytes)
            assert isinstance(old_id, bytes)
            new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            old.command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)  # type: ignore[arg-type]
            for node in (new, old):
                node.command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
            await Hand(backend).put_one(queue="later")
            async with asyncio.timeout(10):
                assert await waiting, "a worker that waits on the old node is woken, too"
            await works(backend)
            assert owner(cluster, project) is new

    asyncio.run(main())


# --- Sentinel ----------------------------------------------------------------------------------------------------


class Sentinel(ValkeyServer):
    """One Sentinel that watches a master."""

    kind = "sentinel"
    master: SpeaksRedis

    def _url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}"  # it has no databases

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        config = folder / "sentinel.conf"
        if not config.exists():
            config.write_text(
                f"sentinel monitor mymaster 127.0.0.1 {self.master.port} 1\n"
                "sentinel down-after-milliseconds mymaster 300\n"
                "sentinel failover-timeout mymaster 2000\n"
            )
        return [self._program(), config, "--sentinel", "--bind", "127.0.0.1", "--port", str(port)]


def test_after_a_failover_the_new_master_is_found(backend_at: Make, blocked: Blocked) -> None:
    async def main(master: SpeaksRedis, replica: SpeaksRedis, sentinel: SpeaksRedis) -> None:
        url = f"redis://127.0.0.1:1,127.0.0.1:{sentinel.port}/0?sentinel_master=mymaster"
        async with backend_at(url) as backend:
            await works(backend)
            queue = backend.queue()
            records = Hand.records(20, queue="kept")
            await queue.enqueue(records)
            await until(lambda: b"state=online" in _info(master))
            await until(lambda: _offset(master) == _offset(replica))
            await until(
                lambda: b"slave" in repr(sentinel.command("SENTINEL", "REPLICAS", "mymaster")).encode()
            )
            waiting = asyncio.ensure_future(queue.wait(["idle"], timeout_s=30))
            await blocked(master)
            await asyncio.to_thread(master.kill)
            async with asyncio.timeout(20):
                while True:
                    try:
                        found = await queue.get([record.id for record in records])
                        break
                    except Exception as error:
                        if not backend.classify(error).is_retryable:
                            raise
                        await asyncio.sleep(0.05)
            assert None not in found, "what had reached the replica is there"
            await works(backend)
            assert await waiting
            health = await backend.check()
            assert health.server.startswith("Valkey")

    with ExitStack() as stack:
        master = stack.enter_context(ValkeyServer("durable"))
        replica = stack.enter_context(
            ValkeyServer(
                "durable", settings={"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": "0"}
            )
        )
        sentinel = Sentinel()
        sentinel.master = master
        stack.enter_context(sentinel)
        asyncio.run(main(master, replica, sentinel))


def _info(server: SpeaksRedis) -> bytes:
    info = server.command("INFO", "replication")
    assert isinstance(info, bytes)
    return info


def _offset(server: SpeaksRedis) -> bytes:
    info = _info(server)
    field = b"slave_repl_offset" if b"role:slave" in info else b"master_repl_offset"
    return next(line for line in info.splitlines() if line.startswith(field)).partition(b":")[2]
