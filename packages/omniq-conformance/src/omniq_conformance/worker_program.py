"""Two programs, as text, since the suite for workers knows ``omniq`` only by what processes of its own say."""

__all__ = ["CLIENT", "PROGRAM"]

PROGRAM = '''
import asyncio, json, os, sys, time
from omniq import OmniQ, current_task

oq = OmniQ(
    os.environ["OMNIQ_SUITE_URL"],
    worker_type=os.environ.get("OMNIQ_SUITE_TYPE"),
    worker_config={"upkeep_s": 0.5},  # leases are short here: by default the end of one is noticed three of them later
)


def note(what, *more):
    """One line in the ledger. Each is one write, so that lines of several processes never mix."""
    line = json.dumps([what, current_task().task_id, current_task().attempt, time.time(), *more]) + "\\n"
    file = os.open(os.environ["OMNIQ_SUITE_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


@oq.task
def plain(value, seconds=0.0):
    before = current_task().task_id
    note("started")
    try:
        time.sleep(seconds)
    finally:
        note("ended")
    return [value, before, current_task().task_id]


@oq.task
async def coroutine(value, seconds=0.0):
    before = current_task().task_id
    note("started")
    try:
        await asyncio.sleep(seconds)
    finally:
        note("ended")
    return [value, before, current_task().task_id]


ERRORS = {kind.__name__: kind for kind in (KeyError, SystemExit, StopIteration, GeneratorExit, BaseException)}


@oq.task
def plain_failure(kind):
    note("started")
    raise ERRORS[kind]("on purpose")


@oq.task
async def coroutine_failure(kind):
    note("started")
    raise ERRORS[kind]("on purpose")


@oq.task
def plain_blocker(seconds):
    import ctypes

    # Keeps the interpreter to itself as long at a time as a computation does, without its heat.
    hold, microseconds = ctypes.PyDLL(None).usleep, round(sys.getswitchinterval() * 1e6)
    note("started")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hold(microseconds)


@oq.task
async def coroutine_blocker(seconds):
    plain_blocker.func(seconds)
'''
"""``suite_program``: the tasks that a :class:`~omniq_conformance.worker_suite.WorkerSuite` has run. The worker under test
imports it, as it would a user's."""

CLIENT = """
import json, sys
from omniq import OmniQ
import suite_program


def answer(oq, verb, *values):
    if verb == "enqueue":
        calls = [
            {"func": getattr(suite_program, name), "func_args": args, **options} for name, args, options in values[0]
        ]
        return oq.enqueue_many(calls)
    if verb == "results":
        ids, timeout = values
        found = [oq.get_result(task_id, timeout) for task_id in ids]
        return [
            one and {"status": one.status, "result": one.result, "error": one.error, "traceback": one.error_traceback}
            for one in found
        ]
    if verb == "tasks":
        found = [oq.get_task(task_id) for task_id in values[0]]
        return [{"status": one.status, "attempts": one.attempts, "crashes": one.crashes} for one in found]
    if verb == "cancel":
        return oq.cancel(values[0])
    if verb == "maintain":
        return oq.task_queue.cleanup_expired()
    raise ValueError(verb)


oq, of = None, None
for line in sys.stdin:
    url, *request = json.loads(line)
    if url != of:
        if oq is not None:
            oq.close()
        oq, of = OmniQ(url), url
    print(json.dumps(answer(oq, *request)), flush=True)
"""
"""What enqueues them and looks: it reads one request a line (the URL of a storage, what is asked, its values), and answers
each with a line."""
