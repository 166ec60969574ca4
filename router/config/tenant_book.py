"""Tenants in files of their own: what is in force of each file, and what a changed one would make of it.

A file is judged with the main file and with those tenants only that use what it uses, so that one of ten thousand is
judged in milliseconds by the very same rules as all. One with mistakes leaves its tenant as it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.config import relations, tenant_files
from router.config.assembling import Assembly, Shared
from router.config.document import Document, parse
from router.config.file_stamps import Stamp, stamp_of
from router.config.problems import Place, Problem
from router.config.regular_files import read_regular, why
from router.config.schema import FileConfig
from router.config.secret_references import SecretReader
from router.config.tenant_index import TenantIndex
from router.config.validation import validate
from router.model.callers import CallerId
from router.model.identity import TenantName
from router.model.topology import Tenant, TenantChanges

_FOLDER = ""
"""No tenant's name: under it the folder itself is refused."""
_BATCH = 250
"""Files judged together: more would take more memory, fewer would judge the main file more often."""
_SINGLY = 50
"""Of the files of a batch with mistakes, so many are judged once more alone: a neighbour may have been to blame. And of
all that were refused before, after each change."""


@dataclass(frozen=True)
class Frame:
    """What of the main file tenants are judged with."""

    folder: Path
    values: Mapping[str, Any]
    """Without tenants."""
    lines: Mapping[Place, int] = field(compare=False)
    base: Path
    environ: Mapping[str, str] | None
    """None: the process's own."""
    jwt: bool
    owners: Mapping[CallerId, str]
    """Whose the tokens of the main file are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tenant in force, and the file that it was made of."""

    tenant: Tenant
    text: bytes
    stamp: Stamp
    secrets: tuple[tuple[str, Stamp], ...]
    """Files that its references led to."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A file with mistakes."""

    problems: tuple[Problem, ...]
    stamp: Stamp
    secrets: tuple[tuple[str, Stamp], ...] = ()


Text = tuple[bytes, Stamp]
"""A file's content, and what it looked like just before it was read."""


class TenantBook:
    """What is in force of each file, and what is not. For one thread at a time; it reads files."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.entries: dict[str, Entry] = {}
        self.refused: dict[str, Refused] = {}
        self.folder_stamp: Stamp = None
        self._index = TenantIndex()
        self._shared = Shared()

    def empty_copy(self) -> TenantBook:
        """One of the same folder, as it was looked at, without tenants."""
        book = TenantBook(self.frame)
        book.folder_stamp = self.folder_stamp
        return book

    @property
    def tenants(self) -> dict[TenantName, Tenant]:
        """Those in force."""
        return {one.tenant.name: one.tenant for one in self.entries.values()}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of files that are not in force as they stand."""
        return tuple(problem for one in self.refused.values() for problem in one.problems)

    def path(self, name: str) -> Path:
        """Where a tenant's file is."""
        return tenant_files.path_of(self.frame.folder, name)

    # --- reading -----------------------------------------------------------------------------------------------

    def look(self, *, closely: bool = True, settled_s: float = 0.0) -> TenantChanges:
        """Take what has changed in the folder since it was read. closely: also what was written into, and secrets; else
        files that came, went or were replaced. settled_s: what was written to within this time is left for the next
        look: it may be half a file.

        With any change, and whenever looked at closely, all that was refused is judged again: the fault may have been
        another file's, or none that a file shows.
        """
        self.folder_stamp = stamp_of(self.frame.folder)
        try:
            found = tenant_files.listed(self.frame.folder, (lambda _: None) if closely else self._stamp)
        except OSError as error:
            words = f"cannot be read: {why(error)}; its tenants stay as they are"
            problem = Problem(0, "", words, _printable(self.frame.folder))
            self.refused[_FOLDER] = Refused((problem,), None)
            return TenantChanges()
        changed = {name for name, stamp in found.items() if self._differs(name, stamp, secrets=closely)}
        now, young_ns = time.time_ns(), round(settled_s * 1e9)
        # A time to come is a wrong clock's, or was set: it would be young for ever.
        young = {name for name in changed if abs(now - (found[name] or (0,))[0]) < young_ns}
        if young:
            changed -= young
            self.folder_stamp = None
        gone = (self.entries.keys() | self.refused.keys()) - found.keys()
        if closely or changed or gone:
            changed |= self.refused.keys() & found.keys()
        return self.update(sorted(changed), sorted(gone))

    def _stamp(self, name: str) -> Stamp:
        known: Entry | Refused | None = self.refused.get(name) or self.entries.get(name)
        return None if known is None else known.stamp

    def _differs(self, name: str, stamp: Stamp, *, secrets: bool) -> bool:
        known: Entry | Refused | None = self.refused.get(name) or self.entries.get(name)
        if known is None or known.stamp != stamp:
            return True
        return secrets and any(stamp_of(path) != before for path, before in known.secrets)

    def files(self) -> dict[str, Stamp]:
        """All that was read, the folder first."""
        found = {str(self.frame.folder): self.folder_stamp}
        for known in (self.entries, self.refused):
            for name in known:
                found |= self.files_of(name)
        return found

    def name_of(self, path: str) -> str | None:
        """The tenant whose file it is, as far as it has one in the folder."""
        folder, _, file = path.rpartition("/")
        name = file.removesuffix(tenant_files.SUFFIX)
        return name if folder == str(self.frame.folder) and (name in self.entries or name in self.refused) else None

    def files_of(self, name: str) -> dict[str, Stamp]:
        """Those of one tenant."""
        known: Entry | Refused | None = self.refused.get(name) or self.entries.get(name)
        return {} if known is None or name == _FOLDER else {str(self.path(name)): known.stamp, **dict(known.secrets)}

    def inherit(self, former: TenantBook) -> tuple[Problem, ...]:
        """Whose file has mistakes stays as it was in a former book; the problems of those that cannot stay."""
        lost: list[Problem] = []
        for name in [name for name in self.refused if name in former.entries]:
            entry = former.entries[name]
            accepted, refused = self.judge({name: (entry.text, entry.stamp)})
            if name in accepted:
                own = self.refused[name]
                self.put(name, accepted[name])
                self.refused[name] = own
            else:
                lost += refused[name].problems
        return tuple(lost)

    def users_of(self, path: str) -> list[str]:
        """Tenants that have a secret in a file."""
        both: tuple[Mapping[str, Entry | Refused], ...] = (self.entries, self.refused)
        return [name for known in both for name, one in known.items() if any(path == used for used, _ in one.secrets)]

    def update(self, names: Sequence[str], gone: Iterable[str] = ()) -> TenantChanges:
        """Take these files as they stand; those with mistakes leave their tenants as they were. With any change, some
        of what was refused is judged again: another's file may have made room."""
        gone = list(gone)
        before = self._in_force((*names, *gone, *self.refused))
        for name in gone:
            self.forget(name)
        for start in range(0, len(names), _BATCH):
            self._take(self._texts(names[start : start + _BATCH]))
        return self._changes(before, but=names if len(names) == 1 else ())

    def accept(self, name: str, entry: Entry) -> TenantChanges:
        """A tenant in force that was judged; and with any change what update() says."""
        before = self._in_force((name, *self.refused))
        self.put(name, entry)
        return self._changes(before)

    def _in_force(self, names: Iterable[str]) -> dict[str, Tenant | None]:
        return {name: self.entries[name].tenant if name in self.entries else None for name in names}

    def _changes(self, before: Mapping[str, Tenant | None], but: Sequence[str] = ()) -> TenantChanges:
        """Against what was in force before, once some of what is refused, but these, is judged again as long as that
        changes anything."""
        known, now = before, self._in_force(before)
        while now != known:
            again = [name for name in self.refused if name not in (_FOLDER, *but)][:_SINGLY]
            if not again:
                break
            for name in again:  # to the end: of many, others come first the next time
                self.refused[name] = self.refused.pop(name)
            self._take(self._texts(again))
            known, now = now, self._in_force(before)
        return TenantChanges(
            tuple(one for name, one in now.items() if one is not None and one != before[name]),
            tuple(TenantName(name) for name, one in now.items() if one is None and before[name] is not None),
        )

    def _texts(self, names: Iterable[str]) -> dict[str, Text]:
        texts: dict[str, Text] = {}
        for name in names:
            path = self.path(name)
            stamp = stamp_of(path)
            if not tenant_files.usable(name):
                problem = "is no usable name for a tenant: letters, digits, '_', '-' and '.', at most 63"
            else:
                try:
                    texts[name] = read_regular(path, tenant_files.MOST_BYTES), stamp
                    continue
                except OSError as error:
                    problem = f"cannot be read: {why(error)}"
            self.refused[name] = Refused((Problem(0, "", problem, _printable(path)),), stamp)
        return texts

    def _take(self, texts: Mapping[str, Text]) -> None:
        accepted, refused = self.judge(texts)
        if refused and len(texts) > 1:
            bad = [name for name in texts if name in refused]
            sound = {name: text for name, text in texts.items() if name not in refused}
            if not sound:  # nobody can tell whose mistake it is
                half = len(bad) // 2
                self._take({name: texts[name] for name in bad[:half]})
                self._take({name: texts[name] for name in bad[half:]})
                return
            self._take(sound)
            for name in bad[:_SINGLY]:
                self._take({name: texts[name]})
            refused = {name: refused[name] for name in bad[_SINGLY:]}
        for name, entry in accepted.items():
            self.put(name, entry)
        self.refused.update(refused)

    def put(self, name: str, entry: Entry) -> None:
        """A tenant in force."""
        self.forget(name)
        self.entries[name] = entry
        self._index.add(entry.tenant)
        self._shared.know(entry.tenant)

    def keep(self, tenants: Mapping[TenantName, Tenant]) -> None:
        """Of equal tenants, these."""
        for name, entry in self.entries.items():
            self.entries[name] = replace(entry, tenant=tenants[entry.tenant.name])

    def forget(self, name: str) -> None:
        """It is gone."""
        self.refused.pop(name, None)
        self.refused.pop(_FOLDER, None)
        entry = self.entries.pop(name, None)
        if entry is not None:
            self._index.drop(entry.tenant)

    # --- judging -----------------------------------------------------------------------------------------------

    def judge(self, texts: Mapping[str, Text]) -> tuple[dict[str, Entry], dict[str, Refused]]:
        """What these files would be with all that is in force. With any mistake none is accepted, and those that are
        to blame are refused; if that is nobody's alone, all."""
        held = [self.entries[name].tenant for name in texts if name in self.entries]
        try:
            for tenant in held:
                self._index.drop(tenant)
            return self._judge(texts)
        finally:
            for tenant in held:
                self._index.add(tenant)

    def _judge(self, texts: Mapping[str, Text]) -> tuple[dict[str, Entry], dict[str, Refused]]:
        document = self._document(texts)
        config = None if document.problems else validate(document)
        tenants: dict[str, Tenant] = {}
        secrets: dict[str, tuple[tuple[str, Stamp], ...]] = {}
        if config is not None:
            relations.check(document, config)
            tenants = self._assembled(document, config, texts, secrets)
        if not document.problems:
            return {
                name: Entry(tenants[name], text, stamp, secrets[name]) for name, (text, stamp) in texts.items()
            }, {}
        problems = document.problems
        refused: dict[str, Refused] = {}
        for name, (_, stamp) in texts.items():
            own = tuple(sorted({one for one in problems if one.source == document.sources.get(name)}))
            if own:
                refused[name] = Refused(own, stamp, secrets.get(name, ()))
        if not refused:  # a neighbour's words tell of it
            every = tuple(sorted(set(problems)))
            refused = {name: Refused(every, stamp, secrets.get(name, ())) for name, (_, stamp) in texts.items()}
        return {}, refused

    def _document(self, texts: Mapping[str, Text]) -> Document:
        """The main file with these tenants in it, and with those in force that may clash with them."""
        document = Document({**self.frame.values, "tenants": {}}, dict(self.frame.lines))
        for name, (text, _) in texts.items():
            document.add_tenant(name, _parsed(text), str(self.path(name)))
        for name in self._index.neighbours(document.values["tenants"]):
            document.add_tenant(name, _parsed(self.entries[name].text), str(self.path(name)))
        return document

    def _assembled(
        self,
        document: Document,
        config: FileConfig,
        names: Iterable[str],
        secrets: dict[str, tuple[tuple[str, Stamp], ...]],
    ) -> dict[str, Tenant]:
        environ = os.environ if self.frame.environ is None else self.frame.environ
        owners: dict[CallerId, str] = {}
        tenants: dict[str, Tenant] = {}
        for name in names:
            section = config.tenants.get(name)
            if section is None:
                continue
            reader = SecretReader(self.frame.base, environ)
            parts = Assembly(
                document, reader, jwt=self.frame.jwt, owners=owners, elsewhere=self._owner, shared=self._shared
            )
            tenants[name] = parts.tenant(name, section)
            secrets[name] = tuple(reader.files.items())
        return tenants

    def _owner(self, token: CallerId) -> str | None:
        tenant = self._index.owner(token)
        return f"tenant {tenant}" if tenant is not None else self.frame.owners.get(token)


def _printable(path: Path) -> str:
    """A path, also one whose bytes are no text: status and log must be able to tell it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _parsed(text: bytes) -> Document:
    try:
        return parse(text.decode("utf-8-sig"), "cluster, database and login", "login")
    except UnicodeDecodeError:
        return Document(problems=[Problem(0, "", "is not UTF-8 text")])
