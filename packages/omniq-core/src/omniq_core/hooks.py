"""Hooks for plugins that watch or adjust OmniQ, through pluggy.

A plugin is a module named by an entry point of the group ``omniq.plugins``, with functions like these marked by
:data:`hookimpl`. Each plugin is loaded in its own ``try``: a broken one is reported and left out.

Hooks are synchronous, must not block, and see batches. An exception in one is logged and never fails a task (except in
``omniq_configure``, which may refuse). What must *surround* a task's execution, or await, is async middleware instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from omniq_core.records import Claim, Enqueued, TaskRecord, Verb, WorkerReport

if TYPE_CHECKING:
    from omniq_core.backend import Backend

__all__ = ["PROJECT", "HookSpecs", "hookimpl", "hookspec"]

PROJECT = "omniq"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks that OmniQ calls."""

    @hookspec
    def omniq_configure(self, settings: Any) -> None:
        """A facade was made. May raise to refuse the settings."""

    @hookspec
    def omniq_backend_opened(self, backend: Backend) -> None:
        """A backend was opened."""

    @hookspec
    def omniq_backend_closing(self, backend: Backend) -> None:
        """A backend is about to be closed."""

    @hookspec
    def omniq_tasks_enqueuing(self, records: Sequence[TaskRecord]) -> Sequence[TaskRecord] | None:
        """Tasks are about to be enqueued; the records that are returned take their place, one for one. The next plugin sees
        those."""

    @hookspec
    def omniq_tasks_enqueued(self, records: Sequence[TaskRecord], answers: Sequence[Enqueued]) -> None:
        """Tasks were enqueued."""

    @hookspec
    def omniq_tasks_claimed(self, claims: Sequence[Claim], worker_id: str) -> None:
        """A worker claimed tasks."""

    @hookspec
    def omniq_task_finished(
        self, claim: Claim, verb: Verb, error: BaseException | None, duration_s: float
    ) -> None:
        """A run ended and was settled with ``verb``."""

    @hookspec
    def omniq_worker_started(self, worker: Any) -> None:
        """A worker is about to claim its first task."""

    @hookspec
    def omniq_worker_stopped(self, report: WorkerReport) -> None:
        """A worker has stopped."""

    @hookspec
    def omniq_register_commands(self, cli: Any) -> None:
        """The command line was made; ``cli`` is its click group."""

    @hookspec
    def omniq_doctor_lines(self) -> Sequence[str] | None:
        """Lines for the command line's check of this installation."""
