"""PgBouncer in front of PostgreSQL: no wheel has it, so the program must be installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from omniq_conformance.servers.base import LOOPBACK, MissingServer, Profile
from omniq_conformance.servers.postgres import PostgresServer, SpeaksPostgres


class PgBouncer(SpeaksPostgres):
    """PgBouncer in transaction mode: between two transactions a client may get another session of PostgreSQL.

    So nothing that a session holds survives a commit: no ``SET``, no ``LISTEN``, no advisory lock, and before PgBouncer 1.21
    no prepared statement. All else is as PgBouncer comes.
    """

    kind = "pgbouncer"
    variable = "OMNIQ_TEST_PGBOUNCER_URL"
    durable = MappingProxyType({})
    unprivileged = True

    def __init__(
        self,
        profile: Profile = "default",
        *,
        upstream: PostgresServer | None = None,
        settings: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        external: str | None = None,
    ) -> None:
        """Nothing runs yet. `upstream` must have been started; it is ours, or any server that lets `postgres` in."""
        super().__init__(profile, settings=settings, env=env, external=external)
        self._upstream = upstream

    @classmethod
    def from_env(
        cls,
        profile: Profile = "default",
        *,
        settings: Mapping[str, str] | None = None,
        upstream: PostgresServer | None = None,
    ) -> Self:
        """The PgBouncer that :attr:`variable` names, if it is set and not empty, else one of ours."""
        external = os.environ.get(cls.variable) or None
        return cls(profile, upstream=upstream, settings=settings, external=external)

    def _prepare(self, folder: Path) -> None:
        (folder / "users").write_text('"postgres" ""\n', "utf-8")
        self._give(folder / "users")

    def _command(self, folder: Path, port: int) -> Sequence[str | Path]:
        # Debian puts it where only root's PATH looks.
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise MissingServer(
                "`pgbouncer` is not installed, and no wheel has it: `apt-get install pgbouncer`, "
                f"or name a running one in {self.variable}"
            )
        if self._upstream is None:
            raise ValueError("PgBouncer needs an upstream")
        settings = {
            "listen_addr": LOOPBACK,
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(folder / "users"),
            "admin_users": "postgres",
            "pool_mode": "transaction",
            **self._settings,
        }
        lines = ["[databases]", f"* = host={LOOPBACK} port={self._upstream.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        config = folder / "pgbouncer.ini"
        config.write_text("\n".join(lines) + "\n", "utf-8")
        self._give(config)
        return [program, config]

    def _url(self, port: int) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{port}/postgres"

    def _ask_version(self) -> str:
        return self.execute("SHOW VERSION", database="pgbouncer")[0][0].split()[-1]
