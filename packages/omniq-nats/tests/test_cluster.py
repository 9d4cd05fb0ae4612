"""Three servers with three replicas: any one of them may die at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from omniq_conformance.load import Load, until
from omniq_conformance.servers import NatsCluster
from omniq_core import Capability, ErrorCode, Severity
from omniq_nats import NatsBackend
from omniq_nats.errors import NO_PEERS, Refused
from omniq_nats.jetstream import JetStream
from omniq_nats.subjects import Subjects

pytestmark = pytest.mark.slow  # clusters elect and lose leaders

Make = Callable[..., NatsBackend]


@pytest.mark.usefixtures("hints_come_back_soon")
def test_nothing_acknowledged_is_lost_and_workers_go_on_when_each_leader_and_each_node_is_killed_under_load(
    nats_cluster: NatsCluster, backend_at: Make, project: str
) -> None:
    names = Subjects(project)

    async def main() -> None:
        await backend_at(nats_cluster.url, replicas=3).setup()
        # Nobody answers a request to a stream without a leader. So this is also how late a new leader is noticed, which a
        # cluster needs up to nine seconds to elect.
        async with backend_at(nats_cluster.url, replicas=3, timeout_s=1.5) as backend:
            assert Capability.DURABLE in backend.capabilities
            load = Load(backend)
            load.start(1, 5, 20, workers=2)
            spared = {0, 1, 2}

            async def lose(number: int) -> None:
                spared.discard(number)
                await load.kill(nats_cluster.nodes[number])
                async with asyncio.timeout(10):
                    await load.goes_on()
                await asyncio.to_thread(nats_cluster.nodes[number].start)
                await until(nats_cluster.is_ready)

            for stream in (names.tasks, names.lines, names.claims):
                await lose(await asyncio.to_thread(nats_cluster.leader_of, stream))
            for number in list(spared):
                await lose(number)
            await load.stop()
            await load.check()

    asyncio.run(main())


def test_a_cluster_without_replicas_is_told_by_the_check(nats_cluster: NatsCluster, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_cluster.url) as backend:
            findings = (await backend.check()).findings
            assert any("one node only" in finding.message for finding in findings)
        async with backend_at(nats_cluster.url, replicas=3) as backend:
            findings = (await backend.check()).findings
            [found, *_] = [f for f in findings if "replica(s)" in f.message]
            assert found.severity is Severity.WARNING, "the streams were made with one replica"

    asyncio.run(main())


def test_replicas_that_the_cluster_has_no_nodes_for_are_refused_in_time(
    nats_cluster: NatsCluster, backend_at: Make
) -> None:
    backend = backend_at(nats_cluster.url, replicas=5, timeout_s=1.0)
    with pytest.raises(Refused, match="no suitable peers") as caught:
        asyncio.run(backend.setup())
    assert backend.classify(caught.value) is ErrorCode.UNAVAILABLE


def test_a_set_up_asks_again_while_the_cluster_has_not_heard_all_its_nodes(
    nats_cluster: NatsCluster, backend_at: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether a node that comes back was heard is a matter of milliseconds, so what the server says then is put in by hand.
    refusals = [Refused("stream.create: no suitable peers for placement, peer offline", 400, NO_PEERS)] * 2
    api = JetStream.api

    async def hard_of_hearing(streams: JetStream, path: str, body: object = None) -> dict[str, Any]:
        if path.startswith("STREAM.CREATE.") and refusals:
            raise refusals.pop()
        return await api(streams, path, body)  # type: ignore[arg-type]

    monkeypatch.setattr(JetStream, "api", hard_of_hearing)
    steps = asyncio.run(backend_at(nats_cluster.url, replicas=3, timeout_s=30.0).setup())
    assert not refusals
    assert len(steps) == 4
