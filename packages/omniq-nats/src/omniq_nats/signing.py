"""Proving who we are with a key: the server sends a challenge, and the seed of an nkey signs it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from omniq_core import MissingLibrary, OptionError
from omniq_nats.options import NatsOptions

__all__ = ["proof"]

_BLOCK = re.compile(r"-+BEGIN ([A-Z ]+)-+\s+(\S+)\s+-+END [A-Z ]+-+")


def proof(options: NatsOptions, challenge: str) -> dict[str, str]:
    """What to add to our greeting: the user and the signed challenge, or nothing.

    Raises:
        OptionError: the seed or the file is none.
        MissingLibrary: the package ``nkeys`` is not installed.
    """
    if options.username is not None:
        return {"user": options.username, "pass": options.password.reveal() if options.password else ""}
    if options.token is not None:
        return {"auth_token": options.token.reveal()}
    if options.credentials_file:
        blocks = dict(_BLOCK.findall(Path(options.credentials_file).read_text("utf-8")))
        jwt, seed = blocks.get("NATS USER JWT"), blocks.get("USER NKEY SEED")
        if not jwt or not seed:
            raise OptionError(f"nats: credentials_file {options.credentials_file!r} holds no JWT and seed")
        return {"jwt": jwt, "sig": _sign(seed, challenge)[1]}
    if options.nkey_seed is not None:
        public, signature = _sign(options.nkey_seed.reveal(), challenge)
        return {"nkey": public, "sig": signature}
    return {}


def _sign(seed: str, challenge: str) -> tuple[str, str]:
    try:
        import nkeys  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            'signing in with an nkey needs the package nkeys: pip install "omniq-nats[nkeys]"'
        ) from error
    try:
        key: Any = nkeys.from_seed(seed.encode())
        public, signature = bytes(key.public_key), bytes(key.sign(challenge.encode()))
    except Exception:  # its message may hold the seed
        raise OptionError("nats: the seed is no nkey seed (SU...)") from None
    return public.decode(), base64.urlsafe_b64encode(signature).decode().rstrip("=")
