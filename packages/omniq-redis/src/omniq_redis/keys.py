"""Where everything of a project lies in Redis: every key, its type, its life.

All keys of a project begin with ``{omniq:<project>}:``, the project percent-encoded. What stands between the first braces
is the *hash tag*: a Cluster keeps all keys of one tag on one node, so that a script may touch any of them. That is also why
scripts get this prefix as their only declared key. Names of queues, ids and unique keys stand at the *end* of a key, raw:
Redis keys are binary, and what comes before the name has no free text in it.

What a task is, is split by what changes:

``t:<id>``              string   The task as it was enqueued: a stamp of the server (place in the order of arrival, time), a
                                 fixed head, names, body; see ``envelope``. Never rewritten. From enqueue until it is
                                 pruned or purged: its existence is what makes an id ``DUPLICATE``.
``h``                   hash     id -> what changes: ``"R 17 1 0 0 2 0 mail"``, that is state, fence, attempt, crashes, a
                                 time, flags, the fence that settled last, and while it runs the queue. **No field: pending
                                 and never claimed.** So enqueuing writes nothing here, claiming and settling write all
                                 tasks of a batch with one command, and fencing is one comparison.
``e``                   hash     id -> reason and error of the last settlement, packed by the client. Mostly empty.

Pending tasks wait in exactly one of these, of their queue and priority:

``l:<priority>:<queue>``  list   New ones, oldest first: pushed at the right, popped in bulk at the left.
``b:<priority>:<queue>``  zset   Those that came *back* (retried, released, reaped, requeued, or delayed and now due), by
                                 place in the order of arrival. A claim merges the two by that order.
``d:<queue>``             zset   Not yet due: ``<priority>:<place>:<id>`` by the time they fall due (ms). A claim moves them.
``x:<priority>:<queue>``  set    Ids in the list ``l`` that are to be skipped: cancelled, expired or purged while they stood
                                 there, as nothing is taken out of the middle of a list. Popping one removes it here.
``lv:<queue>``            zset   The priorities whose line is not empty.
``ex``                    zset   Pending tasks with a time to live, by the time it ends (ms).

``lease``               zset     One member per *claim*, not per task: the claim's number, by the end of its lease (ms).
                                 Renewing a lease touches this alone, reaping is a range of it.
``c:<claim>``           hash     ``w`` worker, ``i`` claim id, ``n`` how many of its tasks are open. Goes with the last.
``f:<claim>``           list     The ids of the claim; those whose record in ``h`` still carries its number are open.
``ci``                  hash     claim id -> number, while the claim is open: what a repeated call is answered from.
``tok``                 string   The last number of a claim or take-over, made of the clock so that none comes twice, even if
                                 the server has forgotten it. A claim's number is the fence of all its tasks.
``rn``                  hash     queue -> how many of its tasks run.

``u``                   hash     unique key -> id of the pending or running task that holds it.
``q``                   set      Every queue that was ever enqueued to.
``paused``              set      Queues that are paused.
``w:<queue>``           zset     A marker, one member, set when something can be claimed; idle workers block on it with
                                 ``BZPOPMIN``, and one wakes for each. A claim that leaves something sets it again, so workers
                                 wake one after the other and never as a herd.
``k:<client>``          zset     The same for one client: interrupts its own blocking command. Seconds.

``seq``                 counter  The order of arrival.
``i:<segment>``         list     The ids of about a thousand arrivals. Queries walk these, retention prunes along them.
``segs``, ``due``       zset     The segments, by number, and by when one next holds something to prune (ms).

``r:<id>``              string   A result record: stored, expires, fence, state, final, body. Ends by itself (``PX``).
``wt:<id>``             string   Clients that wait for that result. Minutes. ``wt`` exists while anybody waits for anything.
``n:<client>``          channel  Sharded pub/sub: results that came, to a client that waits for them; see ``lua/news.lua``.

``ev``                  stream   Events, one entry each: the time as 8 bytes, then the event, packed.
``ei:<n>``              set      Ids of the events of one ten-minute window, kept for two. What is in neither is new.

``v``                   string   The version of this layout.
"""

from __future__ import annotations

from urllib.parse import quote

__all__ = ["LAYOUT", "prefix"]

LAYOUT = 1
"""The version of the layout above. Another one in ``v``: this driver does not touch the data."""


def prefix(project_name: str) -> str:
    """What every key of a project begins with.

    >>> prefix("shop")
    '{omniq:shop}:'
    >>> prefix("a}b*")  # neither ends the hash tag early, nor is a pattern in an ACL rule
    '{omniq:a%7Db%2A}:'
    """
    return f"{{omniq:{quote(project_name, safe='')}}}:"
