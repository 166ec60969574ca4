"""Consistency tokens as metadata, for plain stubs: taken from the caller, given back to who sent some, even empty."""

from __future__ import annotations

import base64

from router.api.message_stream import Context
from router.api.translate import token_from_text
from router.model.errors import bad_request
from router.model.reasons import RefuseReason
from router.model.token import Token

TOKEN_METADATA = "pointsman-token"
"""Base64; may be empty, of who has none yet and wants one."""


def presented_token(context: Context) -> str | None:
    """The metadata's token as text; None when the caller does not use this way."""
    for key, value in context.invocation_metadata() or ():
        if key == TOKEN_METADATA and isinstance(value, str):
            return value
    return None


def return_token(context: Context, presented: str | None, token: bytes) -> None:
    """Let the answer's token follow it, if it is wanted."""
    if presented is not None and token:
        context.set_trailing_metadata(((TOKEN_METADATA, base64.urlsafe_b64encode(token).decode("ascii")),))


def merged(after: Token | None, presented: str) -> Token | None:
    """The token of a message with that of the metadata. RouterError when they are of two systems, or it is none."""
    token = token_from_text(presented)
    if token is None or after is None:
        return after if token is None else token
    try:
        return after.merge(token)
    except ValueError as error:
        raise bad_request(RefuseReason.BAD_REQUEST, f"metadata {TOKEN_METADATA} and after_token: {error}") from error
