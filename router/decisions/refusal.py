"""The value by which a decision says no: reason, status, words and the numbers it looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.model.errors import Code, RouterError
from router.model.reasons import RefuseReason


@dataclass(frozen=True, slots=True)
class Refuse:
    """No, and why. Nothing was executed."""

    reason: RefuseReason
    code: Code
    message: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    retry_after_s: float | None = None

    def error(self) -> RouterError:
        """The error that answers the caller."""
        return RouterError(self.code, self.reason, self.message, retry_after_s=self.retry_after_s, numbers=self.numbers)
