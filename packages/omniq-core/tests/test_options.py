"""Settings of backends: from a dict, keywords, a URL and the environment alike; and secrets, which never show."""

from __future__ import annotations

import copy
import datetime
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from omniq_core import BackendOptions, OptionError, Secret, Url, redact
from omniq_core.options import build_options, options_from_env, options_from_url


class AcmeOptions(BackendOptions, frozen=True, kw_only=True):
    host: str = "localhost"
    port: int = 1234
    timeout: float = 5.0
    tls: bool = False
    password: Secret | None = None
    tags: tuple[str, ...] = ()

    aliases: ClassVar[Mapping[str, str]] = {"hostname": "host", "passwd": "password"}

    @classmethod
    def fields_of_url(cls, url: Url) -> dict[str, object]:
        return {"host": url.host, "port": url.port, "password": url.password}

    def __post_init__(self) -> None:
        if self.port < 1:
            raise ValueError(f"port must be at least 1, got {self.port}")


def build(*sources: tuple[str, Mapping[str, object], bool]) -> AcmeOptions:
    return build_options("acme", AcmeOptions, *sources)


def test_a_later_source_wins_and_aliases_are_the_option_itself() -> None:
    options = build(("a dict", {"hostname": "a", "port": 1}, False), ("keywords", {"host": "b"}, False))
    assert (options.host, options.port, options.project_name) == ("b", 1, "omniq")


def test_the_same_settings_come_from_a_url_and_from_the_environment() -> None:
    url = Url.parse("acme://u:p%40ss@example.org:99?timeout=2.5&tls=true")
    from_url = options_from_url("acme", AcmeOptions, url)
    environment = {
        "ACME_HOST": "example.org", "ACME_PORT": "99", "ACME_TIMEOUT": "2.5", "ACME_TLS": "true", "ACME_PASSWORD": "p@ss",
        "ACME_UNRELATED": "x",
    }  # fmt: skip
    assert from_url == options_from_env("acme", AcmeOptions, "ACME_", environment)
    assert from_url.password == Secret("p@ss")


def test_durations_and_paths_are_taken_as_what_they_mean() -> None:
    options = build(("keywords", {"timeout": datetime.timedelta(minutes=1), "host": Path("a") / "b"}, False))
    assert (options.timeout, options.host) == (60.0, "a/b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prot": 1}, "acme: unknown option 'prot' in keywords; did you mean 'port'?"),
        (
            {"zzz": 1},
            "acme: unknown option 'zzz' in keywords; known: host, password, port, project_name, tags, timeout, tls",
        ),
        ({"port": "99"}, "acme: option 'port' must be int, got '99' in keywords"),
        ({"port": 0}, "acme: port must be at least 1, got 0, in keywords"),
        ({"host": 3}, "acme: option 'host' must be str, got 3 in keywords"),
        (
            {"host": "a", "hostname": "b"},
            "acme: 'host' and 'hostname' are the same option; give one, in keywords",
        ),
        ({"password": 3}, "acme: option 'password' must be Secret | None, got *** in keywords"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        build(("keywords", settings, False))
    assert raised.value.message == message
    assert isinstance(raised.value, ValueError)


def test_a_wrong_value_in_a_url_or_variable_names_the_url_or_the_variable() -> None:
    with pytest.raises(
        OptionError, match=r"option 'port' must be int, got 'x' in acme://u:\*\*\*@h\?port=x"
    ) as raised:
        options_from_url("acme", AcmeOptions, Url.parse("acme://u:hunter2@h?port=x"))
    assert "hunter2" not in str(raised.value)
    with pytest.raises(OptionError, match="got 'many' in the environment variable ACME_PORT"):
        options_from_env("acme", AcmeOptions, "ACME_", {"ACME_PORT": "many"})


# --- URLs --------------------------------------------------------------------------------------------------------


def test_a_url_is_taken_apart_and_decoded() -> None:
    url = Url.parse("Acme://us%40er:p%2Fw@[::1]:5432/a%20b?x=1&y=")
    assert (url.scheme, url.username, url.host, url.port, url.path) == ("acme", "us@er", "::1", 5432, "/a b")
    assert url.password is not None
    assert url.password.reveal() == "p/w"
    assert url.query == {"x": "1", "y": ""}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///a.db", "/a.db"),
        ("sqlite:////tmp/a.db", "//tmp/a.db"),
        ("memory://", ""),
        ("file:///x/y", "/x/y"),
    ],
)
def test_paths_keep_their_slashes(text: str, path: str) -> None:
    assert Url.parse(text).path == path


def test_several_hosts_stay_together() -> None:
    url = Url.parse("nats://a:1,b:2/x")
    assert (url.host, url.port, url.netloc) == ("a:1,b:2", None, "a:1,b:2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks.db", "has no scheme; write it as BACKEND://"),
        ("://x", "has no scheme"),
        ("acme://h:port/x", "the port in acme://h:port/x must be a number"),
        ("acme://h?a=1&a=2", "option 'a' comes twice"),
    ],
)
def test_what_is_no_url_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Url.parse(text)


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("hunter2")
    options = build(("keywords", {"password": "hunter2"}, False))
    url = Url.parse("acme://u:hunter2@h/x?token=hunter2&plain=1")
    shown = [
        repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", repr([secret]), repr(options), repr(url), str(url),
        repr(msgspec.structs.asdict(options)), options.describe(),
    ]  # fmt: skip
    assert not [text for text in shown if "hunter2" in text]
    assert secret.reveal() == "hunter2"
    assert secret == Secret(secret) != Secret("other")
    assert "plain=1" in str(url)


def test_a_secret_is_not_pickled_and_not_encoded() -> None:
    with pytest.raises(TypeError, match="a Secret is not pickled"):
        pickle.dumps(Secret("hunter2"))
    with pytest.raises(TypeError):
        copy.deepcopy(Secret("hunter2"))
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret("hunter2"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:hunter2@h/d", "postgresql://u:***@h/d"),
        ("cannot reach redis://:hunter2@h:1/0, tried twice", "cannot reach redis://:***@h:1/0, tried twice"),
        ("s3://b?access_key=hunter2&region=eu", "s3://b?access_key=***&region=eu"),
        ("x://h?PASSWORD=hunter2", "x://h?PASSWORD=***"),
        ("x://h?api_key=hunter2'", "x://h?api_key=***'"),
        ("nothing to hide: a@b, 10:30", "nothing to hide: a@b, 10:30"),
    ],
)
def test_passwords_are_taken_out_of_any_text(text: str, shown: str) -> None:
    assert redact(text) == shown
