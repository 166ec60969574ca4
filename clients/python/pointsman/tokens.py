"""The consistency token: what a client has seen, so that its next read sees no less."""

from __future__ import annotations

import base64
import threading


class TokenKeeper:
    """The newest token of a client's receipts.

    Tokens are opaque. The router merges the token that a request carried with what the request saw, so an answer
    to a request that knew the newest token simply replaces it. Answers that overtake one another cannot be told
    apart that way; then the greater one is kept, since tokens of one timeline are of fixed width and grow.
    """

    __slots__ = ("_keeping", "_version", "enabled", "value")

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = b""
        self._version = 0
        self._keeping = threading.Lock()  # synchronous clients read their replies in their own threads

    @property
    def version(self) -> int:
        """Remember it when a request is made, for `keep`."""
        return self._version

    def keep(self, token: bytes, version: int) -> None:
        """Takes the token of an answer to a request made at that version."""
        if not token or token == self.value:
            return
        with self._keeping:
            overtaken = version != self._version and len(token) == len(self.value)
            self.value = max(token, self.value) if overtaken else token
            self._version += 1

    @property
    def text(self) -> str:
        """For a cookie or a header; "" when nothing was seen yet."""
        return base64.urlsafe_b64encode(self.value).decode("ascii")

    @text.setter
    def text(self, text: str) -> None:
        try:
            self.value = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError as error:
            raise ValueError(f"not a consistency token: {text!r}") from error
        self._version += 1
