"""JetStream takes an acknowledgement of a delivery that has ended, and so loses tasks. Here it changes nothing.

The same story twice: a worker is dealt a task and stands still past its time; the task goes to another; the first one wakes
and acknowledges; the second one fails, and gives the task back for another try.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from omniq_conformance.hand import Hand
from omniq_conformance.servers import NatsServer
from omniq_core import Outcome, Settlement, TaskState, Verb
from omniq_nats import NatsBackend, NatsOptions
from omniq_nats.connection import Client
from omniq_nats.jetstream import JetStream

Make = Callable[..., NatsBackend]
SHORT_S = 0.3


async def dealt(streams: JetStream, name: str) -> bytes:
    """Where to acknowledge the next delivery. A message is stored, and its writer told so, a moment before the consumer hears
    of it: a pull may find nothing yet."""
    async with asyncio.timeout(10):
        while True:
            for _, place, _, body in await streams.pull(name, "c", 1) or []:
                assert body == b"a task"
                return place
            await asyncio.sleep(0.01)


def test_plain_jetstream_loses_the_task(nats_server: NatsServer) -> None:
    async def main() -> None:
        name = f"PLAIN-{uuid.uuid4().hex[:8]}"
        client = Client(NatsOptions(servers=nats_server.url))
        streams = JetStream(client, is_replicated=False)
        try:
            await streams.api(
                f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.>"], "retention": "workqueue"}
            )
            config = {"durable_name": "c", "ack_policy": "explicit", "ack_wait": int(SHORT_S * 1e9)}
            await streams.api(f"CONSUMER.DURABLE.CREATE.{name}.c", {"stream_name": name, "config": config})
            await streams.write([(f"{name}.t", b"", b"a task")])

            first = await dealt(streams, name)
            second = await dealt(streams, name)  # once the first one's time is over

            await streams.acknowledge([first])  # the late one: taken
            await streams.acknowledge([second], b"-NAK")  # the one who owns it wants another try
            await asyncio.sleep(3 * SHORT_S)
            assert await streams.pull(name, "c", 1) == [], "nobody is dealt it again"
            info = await streams.api(f"STREAM.INFO.{name}")
            assert info["state"]["messages"] == 0, "plain JetStream has lost the task"
        finally:
            await streams.api(f"STREAM.DELETE.{name}")
            await client.close()

    asyncio.run(main())


def test_here_the_task_is_tried_again(nats_server: NatsServer, backend_at: Make) -> None:
    async def main() -> None:
        async with backend_at(nats_server.url) as backend, backend_at(nats_server.url) as other:
            queue = backend.queue()
            record = Hand.record(max_attempts=5)
            await queue.enqueue([record])
            [first] = await queue.claim(["q"], max_tasks=1, lease_s=SHORT_S, worker_id="first", claim_id="1")
            second = None
            async with asyncio.timeout(10):
                while second is None:
                    await other.queue().maintain()
                    claims = await other.queue().claim(
                        ["q"], max_tasks=1, lease_s=60, worker_id="second", claim_id="2"
                    )
                    second = next(iter(claims), None)
                    await asyncio.sleep(0.01)

            late = await queue.settle([Settlement(first.lease, Verb.SUCCEED, result=b"late")])
            assert late == [Outcome.STALE]
            assert await other.queue().settle([Settlement(second.lease, Verb.RETRY)]) == [Outcome.OK]
            [third] = await queue.claim(["q"], max_tasks=1, lease_s=60, worker_id="third", claim_id="3")
            assert (third.task_id, third.attempt, third.crashes) == (record.id, 3, 1), "it is tried again"
            assert await queue.settle([Settlement(third.lease, Verb.SUCCEED)]) == [Outcome.OK]
            assert await backend.result_store().get([record.id]) == [None], "and the late result is not there"

    asyncio.run(main())


def test_a_late_acknowledgement_of_a_delivery_takes_no_task_away(
    nats_server: NatsServer, backend_at: Make
) -> None:
    """Deliveries are hints here. Even the very acknowledgement that JetStream takes too late leaves the task where it is."""

    async def main() -> None:
        async with backend_at(nats_server.url) as backend:
            parts = backend._opened()
            queue, lines = backend.queue(), parts.tasks.lines
            record = Hand.record(max_attempts=5)
            await queue.enqueue([record])
            [hint] = await lines.deal("q", 0, 1)  # a worker is dealt it, and stands still
            # Another takes it, fails, and gives it back; only then the first one wakes and acknowledges.
            await parts.streams.acknowledge([hint.place], b"-NAK")
            [claim] = await queue.claim(["q"], max_tasks=1, lease_s=60, worker_id="w", claim_id="1")
            assert await queue.settle([Settlement(claim.lease, Verb.RETRY)]) == [Outcome.OK]
            await parts.streams.acknowledge([hint.place])
            [again] = await queue.claim(["q"], max_tasks=1, lease_s=60, worker_id="w", claim_id="2")
            assert (again.task_id, again.attempt) == (record.id, 2)
            # And while it runs, that acknowledgement is as good as none.
            await parts.streams.acknowledge([hint.place])
            [found] = await queue.get([record.id])
            assert found is not None
            assert found.state is TaskState.RUNNING
            assert await queue.settle([Settlement(again.lease, Verb.SUCCEED)]) == [Outcome.OK]

    asyncio.run(main())
