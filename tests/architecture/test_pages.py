"""Links between the pages lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in ("router", "clients", "tests", "deploy", "protos")
                                      for page in (ROOT / folder).rglob("*.md"))])  # fmt: skip


def broken(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        if target.startswith(("https://", "http://")):
            continue
        if not there.exists() or (heading and heading not in headings(there)):
            yield target


def headings(page: Path) -> set[str]:
    """As anchors."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken(page))


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[good](#one-two) [nowhere](#three) [gone](other.md) [elsewhere](https://a.example)")
    assert list(broken(page)) == ["#three", "other.md"]
