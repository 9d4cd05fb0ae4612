"""taskiq on Redis, with taskiq-redis.

``RedisStreamBroker``, its recommended broker: a consumer group, acknowledged, up to 100 messages per read. Results in
``RedisAsyncResultBackend``. The rest is told in ``taskiq_calls.py``.
"""

from __future__ import annotations

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.subjects.subject import RESULTS, URL
from benchmarks.subjects.taskiq_calls import TaskiqSubject, declare


def make_broker() -> RedisStreamBroker:
    # "0": a worker that starts after the tasks were sent takes them as well.
    made = RedisStreamBroker(url=URL, consumer_id="0", max_connection_pool_size=128)
    if RESULTS:
        made = made.with_result_backend(RedisAsyncResultBackend(redis_url=URL, max_connection_pool_size=128))
    return made


broker = make_broker()


class Taskiq(TaskiqSubject):
    distributions = ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop")
    imports = "import taskiq; from taskiq_redis import RedisStreamBroker"
    stores = ("redis",)
    pace = {"noop": 800 if RESULTS else 1600, "sleep1": 800}  # noqa: RUF012
    tasks = declare(broker)
    module = __name__

    async def open(self) -> None:
        await broker.startup()

    async def close(self) -> None:
        await broker.connection_pool.disconnect()
        if RESULTS:
            await broker.result_backend.redis_pool.disconnect()


SUBJECT = Taskiq
