"""The process that outlives the tests for a moment, to end the servers that they could not end themselves.

``python _reaper.py`` reads lines: ``+ PID`` to take a server into care, ``- PID`` to let it go, ``/ FOLDER`` for a folder
that is to vanish. When its input ends, as whoever held the other end stopped or was killed, it kills and removes them.

Why not ``PR_SET_PDEATHSIG``: it fires when the *thread* that started the server ends, so that a server restarted from
``asyncio.to_thread`` would die with the event loop of one test; it is forgotten when the server changes its user; and it
reaches no children. A pipe has none of these, and is not only Linux's.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path


def processes() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its state (``R``, ``S``, ``T`` stopped, ``Z`` dead but not yet collected, …)."""
    table: dict[int, tuple[int, str]] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    stat = Path(entry.path, "stat").read_text("utf-8", "replace")
                except OSError:  # it ended while we looked
                    continue
                # The second field is a name in parentheses, which may itself have spaces and parentheses.
                state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                table[int(entry.name)] = int(parent), state
        return table
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        pid, parent, state = line.split()
        table[int(pid)] = int(parent), state[0]
    return table


def tree(root: int) -> list[int]:
    """A live process and its descendants, parents first. Empty when it is gone."""
    table = processes()
    found = [root] if root in table and table[root][1] != "Z" else []
    for pid in found:
        found += [child for child, (parent, state) in table.items() if parent == pid and state != "Z"]
    return found


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def stop_tree(root: int) -> list[int]:
    """SIGSTOP a process and all its descendants; returns them.

    Parents first and again until nobody is new: whoever is stopped starts no more children, so that the list is complete.
    A process group would not do: each backend of PostgreSQL makes a session of its own.
    """
    stopped: list[int] = []
    while fresh := [pid for pid in tree(root) if pid not in stopped]:
        for pid in fresh:
            send(pid, signal.SIGSTOP)
        stopped += fresh
    return stopped


def kill_tree(root: int) -> list[int]:
    """SIGKILL a process and all its descendants at one moment: none sees another die. Returns them."""
    pids = stop_tree(root)
    for pid in reversed(pids):
        send(pid, signal.SIGKILL)
    return pids


def alive(pids: list[int]) -> list[int]:
    """Those that still run (also stopped); a dead process that nobody has collected does not."""
    table = processes()
    return [pid for pid in pids if pid in table and table[pid][1] != "Z"]


def remove_shared_memory(folder: Path) -> None:
    """Remove the System V segment that a killed PostgreSQL left; a machine has few of them.

    By it a second server on the same data notices the first. One that stops in order removes it, and its file with it.
    """
    try:
        segment = (folder / "data" / "postmaster.pid").read_text("utf-8").splitlines()[6].split()[1]
        ctypes.CDLL(None).shmctl(int(segment), 0, None)  # 0 is IPC_RMID
    except (OSError, IndexError, ValueError, AttributeError):
        pass


def born(pid: int) -> str:
    """When a process began, as the system counts, so that another with its number is not taken for it. "" where unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2 :].split()[19]


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is for the tests: they end first, and then we see it
    servers: dict[int, str] = {}
    folders: list[str] = []
    parent, text = os.getppid(), b""
    while os.getppid() == parent:  # a forked child of the tests may hold the pipe open after they are gone
        if select.select([0], [], [], 1.0)[0]:
            data = os.read(0, 65536)
            if not data:
                break
            text += data
            *lines, text = text.split(b"\n")
            for line in lines:
                sign, _, what = os.fsdecode(line).partition(" ")
                if sign == "+":
                    servers[int(what)] = born(int(what))
                elif sign == "-":
                    servers.pop(int(what), None)
                else:
                    folders.append(what)
    killed = [pid for root, since in servers.items() if born(root) == since for pid in kill_tree(root)]
    deadline = time.monotonic() + 10
    while alive(killed) and time.monotonic() < deadline:
        time.sleep(0.01)
    for folder in folders:
        remove_shared_memory(Path(folder))
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
