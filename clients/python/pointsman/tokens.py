"""The consistency token: what a client has seen, so that its next read sees no less."""

from __future__ import annotations

import base64
import threading

from pointsman.errors import Error, TokenLost

_VERSION = 1
_SIZE = 22
_NOW = 2


class TokenKeeper:
    """All that a client has seen, as one token.

    A token names a position, or that and "now": whatever was committed before it is presented, which is what an
    answer of the primary shows at no cost. An exact answer to a request that knew everything seen before covers all
    of it; other answers are merged, as those that overtake one another cannot be told apart. Tokens of versions that
    this client does not know are kept as they come.
    """

    __slots__ = ("_absorbed", "_keeping", "_version", "enabled", "value")

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = b""
        self._absorbed = b""
        """The last token that brought nothing new: the primary's answers show the same one many times over."""
        self._version = 0
        self._keeping = threading.Lock()  # synchronous clients read their replies in their own threads

    @property
    def version(self) -> int:
        """Remember it when a request is made, for `keep`."""
        return self._version

    def keep(self, token: bytes, version: int) -> None:
        """Takes the token of an answer to a request made at that version."""
        if not token or token == self._absorbed or token == self.value:
            return
        with self._keeping:
            covers = version == self._version and not _is_now(token) and _place(token) >= _place(self.value)
            value = token if covers or not self.value else merge(self.value, token)
            self._absorbed = b"" if value == token else token
            if value != self.value:
                self.value = value
                self._version += 1

    def observe(self, text: str) -> None:
        """Takes a token from elsewhere, besides what was seen here. ValueError when it is none."""
        token = _from_text(text)
        with self._keeping:
            self.value = merge(self.value, token) if self.value and token else self.value or token
            self._absorbed = b""
            self._version += 1

    def told(self, error: Error, version: int) -> Error:
        """The error of a request made at that version. When it tells that what the request carried was lost, that is
        told once: the client goes on without."""
        if isinstance(error, TokenLost):
            with self._keeping:
                if version == self._version:
                    self.value = self._absorbed = b""
                    self._version += 1
        return error

    @property
    def text(self) -> str:
        """For a cookie or a header; "" when nothing was seen yet."""
        return base64.urlsafe_b64encode(self.value).decode("ascii")

    @text.setter
    def text(self, text: str) -> None:
        self.value = _from_text(text)
        self._absorbed = b""
        self._version += 1


def merge(one: bytes, other: bytes) -> bytes:
    """The token that sees all that either sees; of versions unknown here, or of two systems, the greater or later."""
    if not (_is_known(one) and _is_known(other)):
        return max(one, other) if len(one) == len(other) else other
    if one[:9] != other[:9]:
        return other
    greater = max(one, other, key=_place)
    return greater[:-1] + bytes([greater[-1] | ((one[-1] | other[-1]) & _NOW)])


def _is_known(token: bytes) -> bool:
    return len(token) == _SIZE and token[0] == _VERSION


def _is_now(token: bytes) -> bool:
    return _is_known(token) and bool(token[-1] & _NOW)


def _place(token: bytes) -> bytes:
    """Tokens of one system in their order, "now" aside."""
    return token[:-1] + bytes([token[-1] & ~_NOW]) if _is_known(token) else b""


def _from_text(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError as error:
        raise ValueError(f"not a consistency token: {text!r}") from error
