"""Tenants as operators make, change, pause and remove them at run time: each order is one file, written as a whole.

An order is judged with all that is in force before anything is written, and in force when it is answered. Who changes
names the version that was seen, so that nobody undoes what somebody else has just done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from router.config import problems, reading, tenant_files
from router.config.regular_files import read_regular, why
from router.live_configuration import LiveConfiguration
from router.model.errors import Code, RouterError, bad_request
from router.model.reasons import RefuseReason
from router.model.topology import TenantChanges
from router.model.views import TenantDocument, TenantOrdered

if TYPE_CHECKING:
    from router.config.tenant_book import TenantBook

_T = TypeVar("_T")
_Edit = Callable[[bytes | None], bytes | None]
"""From a file's content to what it shall be; None: no file."""


class TenantStore:
    """api.surface.TenantStore. All raise RouterError."""

    def __init__(self, live: LiveConfiguration) -> None:
        self._live = live

    async def show(self, name: str) -> TenantDocument:
        """A tenant's file as it stands; where there is none, its section of the configuration file, without a version:
        no order changes it."""
        async with self._live.turn:
            book = self._live.book
            if book is None:
                view = self._live.view()
                document = await asyncio.to_thread(_section, Path(view.path), _checked(name))
                return TenantDocument(name, document, "", view.problems)
            text = await asyncio.to_thread(_read, book.path(_checked(name)))
            if text is None:
                raise _unknown(name)
            refused = book.refused.get(name)
            told = problems.lines(book.frame.folder, refused.problems) if refused is not None else ()
            return TenantDocument(name, text.decode("utf-8", "replace"), tenant_files.version_of(text), told)

    async def create(self, name: str, document: str) -> TenantOrdered:
        """Make a tenant."""

        def edit(now: bytes | None) -> bytes:
            if now is not None:
                raise RouterError(
                    Code.ALREADY_EXISTS, RefuseReason.TENANT_EXISTS, f"tenant {name} exists: change it instead"
                )
            return document.encode()

        return await self._order(name, edit, "")

    async def change(self, name: str, document: str, version: str) -> TenantOrdered:
        """Give a tenant another document."""
        return await self._order(name, lambda now: _there(name, now) and document.encode(), version)

    async def pause(self, name: str, version: str, *, paused: bool) -> TenantOrdered:
        """Pause a tenant, or resume it; nothing else of its document changes."""
        from router.config.paused_text import with_paused  # with YAML, which a router may do without

        return await self._order(name, lambda now: with_paused(_there(name, now), paused=paused), version)

    async def remove(self, name: str, version: str) -> TenantOrdered:
        """Take a tenant away: what it has running ends, then its connections close."""

        def edit(now: bytes | None) -> None:
            _there(name, now)

        return await self._order(name, edit, version)

    async def _order(self, name: str, edit: _Edit, version: str) -> TenantOrdered:
        async def order() -> TenantOrdered:
            book = self._book()
            changes, text = await asyncio.to_thread(_carry_out, book, _checked(name), edit, version)
            told = await self._live.take(changes)
            return TenantOrdered("" if text is None else tenant_files.version_of(text), told)

        return await self._live.carried_out(order)

    def _book(self) -> TenantBook:
        book = self._live.book
        if book is None:
            raise RouterError(
                Code.FAILED_PRECONDITION,
                RefuseReason.CONFIG_INVALID,
                "tenants stand in the configuration file itself, which only its owner edits: change it there (it is "
                "watched), or set tenants_dir in its place, a folder with a file NAME.yaml for each tenant",
            )
        return book


def _carry_out(book: TenantBook, name: str, edit: _Edit, version: str) -> tuple[TenantChanges, bytes | None]:
    """Judge, then write. Blocking."""
    now = _read(book.path(name))
    if version and (now is None or version != tenant_files.version_of(now)):
        raise RouterError(
            Code.ABORTED,
            RefuseReason.VERSION_CHANGED,
            f"tenant {name} is no longer as you have seen it (version {version}): look again, then change it",
        )
    text = edit(now)
    if text is None:
        _written(lambda: tenant_files.remove(book.frame.folder, name), book.frame.folder)
        return book.update([], [name]), None
    if len(text) > tenant_files.MOST_BYTES:
        # Written it would be refused by the next start, and by every look.
        raise bad_request(
            RefuseReason.CONFIG_INVALID,
            f"the document of tenant {name} has {len(text)} bytes, its file may have {tenant_files.MOST_BYTES}",
        )
    accepted, refused = book.judge({name: (text, None)})
    if name in refused:
        lines = problems.lines(book.frame.folder, refused[name].problems)
        raise bad_request(RefuseReason.CONFIG_INVALID, "\n".join(lines))
    stamp = _written(lambda: tenant_files.write(book.frame.folder, name, text), book.frame.folder)
    return book.accept(name, replace(accepted[name], stamp=stamp)), text


def _written(act: Callable[[], _T], folder: Path) -> _T:
    try:
        return act()
    except OSError as error:
        raise RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.CONFIG_INVALID,
            f"folder {folder} cannot be written to: {why(error)}",
        ) from None


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path, tenant_files.MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.CONFIG_INVALID,
            f"{path} cannot be read: {why(error)}",
        ) from None


def _section(source: Path, name: str) -> str:
    """A tenant's section of the configuration file. Blocking."""
    from router.config.tenant_sections import section_of  # with YAML, which a router may do without

    if not reading.is_small(source):  # its parser would hold the interpreter, and with it every caller
        raise RouterError(
            Code.FAILED_PRECONDITION,
            RefuseReason.CONFIG_INVALID,
            f"tenants stand in the configuration file itself, {source}, which is too large to be read here: look there",
        )
    found = section_of(_read(source) or b"", name)
    if found is None:
        raise _unknown(name)
    return found


def _there(name: str, now: bytes | None) -> bytes:
    if now is None:
        raise _unknown(name)
    return now


def _unknown(name: str) -> RouterError:
    return RouterError(Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"there is no tenant {name!r}")


def _checked(name: str) -> str:
    if not tenant_files.usable(name):
        raise bad_request(
            RefuseReason.BAD_REQUEST,
            f"{name!r} is no usable name for a tenant: letters, digits, '_', '-' and '.', at most 63, a letter or "
            "digit at both ends",
        )
    return name
