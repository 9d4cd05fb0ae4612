"""Where the settings come from, what they refuse, and that a password is never shown."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable

import pytest
from psycopg.conninfo import conninfo_to_dict

from omniq_core import BackendError, OptionError, Secret, Url, backend_class
from omniq_postgres import PostgresBackend, PostgresOptions

SECRET = "correct horse/battery@staple"
QUOTED = "correct%20horse%2Fbattery%40staple"


def conninfo(backend: PostgresBackend, **kwargs: bool) -> dict[str, object]:
    return dict(conninfo_to_dict(backend.options.conninfo(**kwargs)))


def test_a_url_names_everything() -> None:
    backend = PostgresBackend.from_url(
        f"postgresql://ann:{QUOTED}@db.example:6432/shop?schema=jobs&sslmode=require&notify=false&pool_size=2"
    )
    found = conninfo(backend)
    assert (found["user"], found["password"], found["host"]) == ("ann", SECRET, "db.example")
    assert (found["port"], found["dbname"], found["sslmode"]) == ("6432", "shop", "require")
    assert (backend.options.schema_name, backend.options.notify, backend.options.pool_size) == (
        "jobs",
        False,
        2,
    )


def test_both_names_load_the_backend() -> None:
    assert backend_class("postgres") is backend_class("postgresql") is PostgresBackend


def test_options_have_their_usual_other_names() -> None:
    backend = PostgresBackend(user="ann", dbname="shop", password="x")
    assert (backend.options.username, backend.options.database) == ("ann", "shop")


def test_without_a_database_or_a_password_libpq_decides() -> None:
    found = conninfo(PostgresBackend(host="db"))
    assert not {"dbname", "password", "user"} & found.keys()


def test_the_schema_is_the_projects_name_unless_given() -> None:
    assert PostgresBackend(project_name="shop").options.schema_name == "shop"
    assert PostgresBackend(project_name="shop", schema="jobs").options.schema_name == "jobs"


@pytest.mark.parametrize("name", ["", "x" * 64, 'a"b', "a'b", "a$b", "a@b", "pg_mine", "a\nb", "a\\b"])
def test_a_name_that_cannot_be_a_schema_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="schema"):
        PostgresBackend(schema=name)
    with pytest.raises(OptionError, match="schema"):
        PostgresBackend(project_name=name)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"synchronous_commit": "sometimes"}, "synchronous_commit"),
        ({"pool_size": 0}, "pool_size"),
        ({"connect_timeout_s": 0.0}, "connect_timeout_s"),
        ({"statement_timeout_s": -1.0}, "statement_timeout_s"),
        ({"retention_s": -1.0}, "retention_s"),
        ({"poll_interval_s": 0.0}, "poll_interval_s"),
        ({"notify": False, "listen_url": "postgresql://db/x"}, "listen_url"),
        ({"url": f"nonsense {SECRET}"}, "url"),
        ({"hots": "db"}, "did you mean 'host'"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, object], word: str) -> None:
    with pytest.raises(OptionError, match=word) as caught:
        PostgresBackend(settings)
    assert SECRET not in str(caught.value)


def test_several_hosts_are_handed_to_libpq() -> None:
    found = conninfo(PostgresBackend.from_url("postgresql://a:1,b:2,c/shop?target_session_attrs=read-write"))
    assert (found["host"], found["port"]) == ("a,b,c", "1,2,")
    found = conninfo(PostgresBackend(host="a,b", port=7))
    assert (found["host"], found["port"]) == ("a,b", "7")


def test_a_socket_folder_is_a_host() -> None:
    assert conninfo(PostgresBackend.from_url("postgresql:///shop?host=/run/pg"))["host"] == "/run/pg"


def test_options_win_over_the_url_option() -> None:
    backend = PostgresBackend(dsn=f"host=a port=1 user=u password='{SECRET}'", port=2)
    found = conninfo(backend)
    assert (found["host"], found["port"], found["password"]) == ("a", "2", SECRET)


def test_only_the_listener_uses_the_listen_url() -> None:
    backend = PostgresBackend(host="pooler", database="shop", listen_url="postgresql://direct/shop")
    assert conninfo(backend)["host"] == "pooler"
    assert conninfo(backend, listen=True)["host"] == "direct"
    assert backend.options.is_pooled, "behind a pooler nothing may depend on a session"


def _backends() -> list[Callable[[], PostgresBackend]]:
    url = f"postgresql://ann:{QUOTED}@127.0.0.1:1/shop"
    return [
        lambda: PostgresBackend.from_url(url),
        lambda: PostgresBackend(url=url),
        lambda: PostgresBackend(host="127.0.0.1", port=1, username="ann", password=SECRET, database="shop"),
        lambda: PostgresBackend(url=Secret(url), listen_url=url),
        lambda: PostgresBackend.from_env(environ={"OMNIQ_POSTGRES_URL": url}),
    ]


@pytest.mark.parametrize("make", _backends())
def test_a_password_is_never_shown(make: Callable[[], PostgresBackend]) -> None:
    backend = make()
    shown = [repr(backend), str(backend.options), repr(backend.options), repr(backend.config)]
    shown.append(backend.options.describe())

    async def fail() -> None:
        await backend.open()

    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it must not tell
        asyncio.run(fail())
    shown += traceback.format_exception(caught.value)
    shown.append(repr(caught.value))
    for text in shown:
        assert SECRET not in text
        assert QUOTED not in text


def test_a_url_hides_its_password_in_messages() -> None:
    url = Url.parse(f"postgresql://ann:{QUOTED}@db/shop?nonsense=1")
    with pytest.raises(OptionError) as caught:
        PostgresBackend.from_url(url)
    assert QUOTED not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_nobody_there_is_unavailable_and_nothing_stays_open() -> None:
    backend = PostgresBackend(host="127.0.0.1", port=1)

    async def main() -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is psycopg's affair
            await backend.open()
        code = backend.classify(caught.value)
        assert code.value == "unavailable", f"{caught.value!r} was classified {code}"
        with pytest.raises(BackendError):
            backend.queue()

    asyncio.run(main())


def test_durations_may_be_timedeltas() -> None:
    import datetime

    assert PostgresOptions().retention_s == 7 * 86400
    assert PostgresBackend(retention=datetime.timedelta(hours=2)).options.retention_s == 7200
