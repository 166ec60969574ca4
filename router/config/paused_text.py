"""Pausing a tenant in its file's text: one line comes or goes, whatever else its owner has written there stays."""

from __future__ import annotations

import re

import yaml

from router.config.document import parse

_LINE = re.compile(r"^paused[ \t]*:.*\n?", re.MULTILINE)


def with_paused(text: bytes, *, paused: bool) -> bytes:
    """The text of a tenant's file with paused: true, or without it. A text that cannot be read comes back as it is."""
    before = text.decode("utf-8-sig", "replace")
    document = parse(before)
    wanted = {key: value for key, value in document.values.items() if key != "paused"}
    if document.problems or not wanted:
        return text
    if paused:
        wanted["paused"] = True
    after = _LINE.sub("", before)
    if paused:
        after = f"{after.rstrip()}\npaused: true\n"
    if parse(after).values != wanted:  # not written line by line, such as JSON
        after = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    return after.encode()
