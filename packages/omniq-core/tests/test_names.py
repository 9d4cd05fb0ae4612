"""What queues, tasks and ids may be called: almost anything."""

from __future__ import annotations

import pytest

from omniq_core import MAX_ID_BYTES, MAX_NAME_BYTES, check_name, check_task_id


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "a.b/c:d*e",
        "x y",
        "'; drop table tasks; --",
        "日本語",
        "🙂",
        "a" * MAX_NAME_BYTES,
        "..",
        "%2F",
    ],
)
def test_almost_any_text_is_a_name(name: str) -> None:
    assert check_name("queue name", name) == name
    assert check_name("queue name", name) == name  # known by now


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "a queue name must not be empty"),
        ("a\nb", ValueError, r"must not hold control characters, got '\\n' in 'a\\nb'"),
        ("a\x00", ValueError, "control characters"),
        ("a" * (MAX_NAME_BYTES + 1), ValueError, "at most 255 bytes in UTF-8, got 256"),
        ("é" * 128, ValueError, "at most 255 bytes in UTF-8, got 256"),
        ("\ud800", ValueError, "must be encodable as UTF-8"),
        (b"bytes", TypeError, "a queue name must be text, got bytes"),
        (None, TypeError, "must be text, got NoneType"),
    ],
)
def test_what_is_no_name_is_refused_with_a_reason(name: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_name("queue name", name)  # type: ignore[arg-type]


def test_ids_are_shorter() -> None:
    assert check_task_id("x" * MAX_ID_BYTES)
    with pytest.raises(ValueError, match="a task id has at most 128 bytes"):
        check_task_id("x" * (MAX_ID_BYTES + 1))
