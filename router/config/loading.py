"""A YAML file, and a folder of tenants' files if it names one → LoadedConfig, or ConfigProblems with every mistake."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from router.config import relations
from router.config.assembling import Assembly
from router.config.document import Document, parse
from router.config.file_stamps import stamp_of
from router.config.loaded import LoadedConfig
from router.config.problems import ConfigProblems, Problem
from router.config.regular_files import why
from router.config.schema import FileConfig
from router.config.secret_references import SecretReader
from router.config.tenant_book import Frame, TenantBook
from router.config.validation import validate
from router.model.callers import CallerId
from router.model.identity import ClusterName, TenantName
from router.model.topology import Topology

_MOST_BYTES = 32 * 1024 * 1024


def load(path: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read and check a configuration file. ConfigProblems when anything is wrong with it, or with a tenant's file.

    environ: where env: references are looked up, the process's own when None. Relative file: references start at the
    folder of the file. Does blocking file I/O.
    """
    loaded = load_leniently(path, environ)
    if loaded.book is not None and loaded.book.problems:
        raise ConfigProblems(path, loaded.book.problems, loaded.files)
    return loaded


def load_leniently(path: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The same, but a tenant whose own file is wrong is left out: LoadedConfig.book.problems tells of it."""
    return _with_tenants(load_main(path, environ))


def load_text_leniently(text: str, source: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The same for a main file's text that is already read."""
    return _with_tenants(load_text(text, source, environ))


def _with_tenants(loaded: LoadedConfig) -> LoadedConfig:
    if loaded.book is None:
        return loaded
    loaded.book.look()
    return replace(loaded, topology=Topology(loaded.topology.clusters, loaded.book.tenants))


def load_main(path: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The main file alone: its book of tenants, if it has a folder for them, has yet to be read."""
    files = {str(path): stamp_of(path)}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigProblems(path, [Problem(0, "", "is larger than 32 MiB: is it a configuration file?")], files)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigProblems(path, [Problem(0, "", "no such file")], files) from None
    except OSError as error:
        raise ConfigProblems(path, [Problem(0, "", f"cannot be read: {why(error)}")], files) from None
    except UnicodeDecodeError:
        raise ConfigProblems(path, [Problem(0, "", "is not UTF-8 text")], files) from None
    try:
        loaded = load_text(text, path, environ)
    except ConfigProblems as problems:
        problems.files = files | problems.files
        raise
    return replace(loaded, files=files | dict(loaded.files))


def load_text(text: str, source: Path, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """The same for a text that is already read; source names it in messages and anchors relative paths."""
    return _loaded(text, source, os.environ if environ is None else environ)


def _loaded(text: str, source: Path, environ: Mapping[str, str]) -> LoadedConfig:
    document = parse(text)
    config = validate(document) if document.values else None
    reader = SecretReader(source.resolve().parent, environ)
    if config is not None:
        relations.check(document, config)
        loaded = _assembled(document, config, reader, source)
        if not document.problems:
            return replace(loaded, files=reader.files)
    raise ConfigProblems(source, document.problems, reader.files)


def _assembled(document: Document, config: FileConfig, reader: SecretReader, source: Path) -> LoadedConfig:
    owners: dict[CallerId, str] = {}
    parts = Assembly(document, reader, jwt=config.server.jwt.on, owners=owners)
    clusters = {ClusterName(name): parts.cluster(name, section) for name, section in config.clusters.items()}
    admin_tokens = parts.tokens(("admin",), config.admin.tokens, "the operators")
    tenants = {TenantName(name): parts.tenant(name, section) for name, section in config.tenants.items()}
    server = parts.server(config.server)
    operators = parts.callers(("admin",), config.admin.callers, "the operators")
    book = None
    if config.tenants_dir is not None:
        folder = reader.base / Path(config.tenants_dir).expanduser()
        stamp = stamp_of(folder)
        if not os.path.isdir(folder):
            reader.files[str(folder)] = stamp
            document.report(("tenants_dir",), f"folder {folder} does not exist: make it, empty if need be")
        values = {key: value for key, value in document.values.items() if key in ("server", "admin", "clusters")}
        environ = None if reader.environ is os.environ else dict(reader.environ)
        frame = Frame(folder, values, dict(document.lines), reader.base, environ, config.server.jwt.on, owners)
        book = TenantBook(frame)
    topology = Topology(clusters, tenants)
    return LoadedConfig(
        topology, server, config.retry, admin_tokens, operators, config.log, source, book=book
    )
