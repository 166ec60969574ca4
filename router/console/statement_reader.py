"""Lines typed at the prompt → statements: a statement ends at a `;` outside quotes, comments and dollar quoting."""

from __future__ import annotations

import re

_DOLLAR = re.compile(r"\$([A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*)?\$")
_ESCAPED = re.compile(r"(?:^|[^\w$])[eE]$")
"""What stands before the quote of an E'...' text, in which a backslash escapes."""
_READING_WORDS = frozenset({"select", "with", "table", "values", "show", "explain"})
_WORD = re.compile(r"[A-Za-z]+")


class StatementReader:
    """Collects lines until they make statements."""

    def __init__(self) -> None:
        self._text = ""

    @property
    def pending(self) -> bool:
        """Whether a statement was begun."""
        return bool(self._text.strip())

    @property
    def quoted(self) -> bool:
        """Whether a quoted text or a comment was begun, so that a backslash at a line's begin belongs to it."""
        return len(split(f"{self._text};")) == 1

    def clear(self) -> None:
        """Forget what was begun."""
        self._text = ""

    def feed(self, line: str) -> list[str]:
        """Take a line; the statements that are complete now, without their `;`."""
        *complete, self._text = split(f"{self._text}{line}\n")
        return [statement.strip() for statement in complete if statement.strip()]


def split(text: str) -> list[str]:
    """Cut at each `;` that ends a statement; the last piece is what has not ended."""
    pieces: list[str] = []
    start = at = 0
    while at < len(text):
        if text[at] == ";":
            pieces.append(text[start:at])
            start = at = at + 1
        else:
            at = _skip(text, at)
    pieces.append(text[start:])
    return pieces


def backslash_command(text: str) -> tuple[int, str] | None:
    """The first line that begins with a backslash outside quotes and comments: its number, and its first word."""
    at, blank = 0, True
    while at < len(text):
        if blank and text[at] == "\\":
            return text.count("\n", 0, at) + 1, text[at:].split(maxsplit=1)[0]
        after = _skip(text, at)
        blank = text[after - 1] == "\n" or (blank and text[at].isspace())
        at = after
    return None


def _skip(text: str, at: int) -> int:
    """The position after what stands at a position: one character, or a whole quoted text or comment."""
    end = len(text)
    match text[at]:
        case "'":
            return _quoted(text, at, "'", escapes=_ESCAPED.search(text[max(0, at - 2) : at]) is not None)
        case '"':
            return _quoted(text, at, '"', escapes=False)
        case "-" if text.startswith("--", at):
            newline = text.find("\n", at)
            return end if newline < 0 else newline + 1
        case "/" if text.startswith("/*", at):
            return _comment(text, at)
        case "$" if at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "_$"):
            opening = _DOLLAR.match(text, at)
            if opening is None:
                return at + 1
            closing = text.find(opening.group(), opening.end())
            return end if closing < 0 else closing + len(opening.group())
        case _:
            return at + 1


def _quoted(text: str, at: int, quote: str, *, escapes: bool) -> int:
    at += 1
    while at < len(text):
        if escapes and text[at] == "\\":
            at += 2
        elif text[at] == quote:
            if not text.startswith(quote, at + 1):
                return at + 1
            at += 2
        else:
            at += 1
    return len(text)


def _comment(text: str, at: int) -> int:
    """PostgreSQL's comments nest."""
    depth = 0
    while at < len(text):
        if text.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif text.startswith("*/", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    return len(text)


def first_word(sql: str) -> str:
    """The statement's first word in lower case, comments skipped; empty when there is none."""
    at = 0
    while at < len(sql):
        if sql[at].isspace() or sql[at] == "(":
            at += 1
        elif sql.startswith(("--", "/*"), at):
            at = _skip(sql, at)
        else:
            break
    word = _WORD.match(sql, at)
    return word.group().lower() if word else ""


def looks_like_a_read(sql: str) -> bool:
    """A guess from the first word; when it is wrong, PostgreSQL says so and nothing has happened."""
    return first_word(sql) in _READING_WORDS
