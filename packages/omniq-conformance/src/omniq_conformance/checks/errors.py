"""What native exceptions mean: nothing may claim that a call did not happen when it may have."""

from __future__ import annotations

from omniq_conformance.bench import Bench
from omniq_conformance.catalogue import check
from omniq_core import BackendError, Closed, ErrorCode, SchemaOutOfDate, TooLarge, Unreachable

CLAIMS_NO_EFFECT = (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.EXHAUSTED)


@check()
async def an_error_of_the_contract_is_answered_with_its_own_code(b: Bench) -> None:
    errors: list[BackendError] = [
        Closed("x"),
        TooLarge("x"),
        SchemaOutOfDate("x"),
        Unreachable("x", ErrorCode.UNAVAILABLE),
        *(BackendError("x", code) for code in ErrorCode),
    ]
    for error in errors:
        code = b.backend.classify(error)
        assert code is error.error_code, f"classify({error!r}) with code {error.error_code} gave {code}"


@check()
async def what_is_not_known_is_not_guessed(b: Bench) -> None:
    class Strange(Exception):
        pass

    for error in (Strange("x"), ValueError("x"), KeyError("x"), AssertionError("x"), KeyboardInterrupt()):
        code = b.backend.classify(error)
        assert isinstance(code, ErrorCode), f"classify gave {code!r}, no ErrorCode"
        assert code not in CLAIMS_NO_EFFECT, (
            f"classify({error!r}) gave {code}, which claims that the call had no effect; answer UNKNOWN in doubt"
        )


@check()
async def classifying_needs_no_open_backend_and_changes_nothing(b: Bench) -> None:
    async with b.unopened() as backend:
        errors = (ValueError("x"), OSError("x"), Closed("x"))
        first = [backend.classify(error) for error in errors]
        assert [b.backend.classify(error) for error in errors] == first, (
            "a closed backend classifies otherwise"
        )
        assert [backend.classify(error) for error in errors] == first, (
            "classify gave two answers for one error"
        )


@check()
async def native_errors_have_the_codes_that_the_author_says(b: Bench) -> None:
    for error, code in b.suite.native_errors().items():
        found = b.backend.classify(error)
        assert found is ErrorCode(code), f"classify({error!r}) gave {found}, the author's table says {code}"


@check()
async def calling_a_closed_backend_is_classified_as_closed(b: Bench) -> None:
    other = await b.another()
    queue = other.queue
    await other.backend.close()
    try:
        await queue.get(["no such task"])
    except Exception as error:
        code = other.backend.classify(error)
        assert code is ErrorCode.CLOSED, f"what a closed backend raised is classified as {code}: {error!r}"
        assert "://" not in str(error) or "@" not in str(error), "the error shows a URL with credentials"
        return
    raise AssertionError("a closed backend answered")
