"""Secrets by reference: env:NAME or file:PATH, for passwords of logins also command:PROGRAM ARGUMENT ...

The file never holds one, and no message shows one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from router.config.file_stamps import Stamp, stamp_of
from router.config.regular_files import read_regular, why
from router.model.secret_commands import SecretCommand
from router.model.topology import Secret

PATTERN = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$"
WAY_OUT = "must be a reference: env:NAME (an environment variable) or file:PATH (a file), never the secret itself"
_MOST_BYTES = 64 * 1024


class SecretUnavailable(Exception):
    """A reference leads to no secret. str() is what the operator reads."""


def _check(value: object) -> str:
    # Before pydantic's own check: its message would show the value, which may be the secret itself.
    if not isinstance(value, str) or re.match(PATTERN, value) is None:
        raise ValueError(WAY_OUT)
    return value


SecretReference = Annotated[
    str,
    BeforeValidator(_check),
    Field(examples=["env:ACME_PASSWORD", "file:acme.password"], json_schema_extra={"pattern": PATTERN}),
]


PASSWORD_PATTERN = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|command:\s*\S.*)$"
PASSWORD_WAY_OUT = (
    "must be a reference: env:NAME (an environment variable), file:PATH (a file) or command:PROGRAM ARGUMENT ... (a "
    "program that prints it), never the password itself"
)


def _check_password(value: object) -> str:
    if not isinstance(value, str) or re.match(PASSWORD_PATTERN, value) is None:
        raise ValueError(PASSWORD_WAY_OUT)
    return value


PasswordReference = Annotated[
    str,
    BeforeValidator(_check_password),
    Field(examples=["env:ACME_PASSWORD", "file:acme.password"], json_schema_extra={"pattern": PASSWORD_PATTERN}),
]


TOKEN_PATTERN = r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|sha256:[0-9a-f]{64})$"
TOKEN_WAY_OUT = "must be env:NAME, file:PATH, or sha256: and 64 hexadecimal digits in lower case, never the token"


def _check_token(value: object) -> str:
    if not isinstance(value, str) or re.match(TOKEN_PATTERN, value) is None:
        raise ValueError(TOKEN_WAY_OUT)
    return value


TokenReference = Annotated[
    str,
    BeforeValidator(_check_token),
    Field(examples=["sha256:9f86d081…"], json_schema_extra={"pattern": TOKEN_PATTERN}),
]


@dataclass(frozen=True)
class SecretReader:
    """Resolves references. base: the folder that relative file paths start from; environ: the environment."""

    base: Path
    environ: Mapping[str, str]
    files: dict[str, Stamp] = field(default_factory=dict)
    """Those that references have led to, as they were before they were read; also those that could not be, and whatever
    else was not there that the configuration needs."""

    def read(self, reference: str) -> Secret:
        """The secret behind a reference. SecretUnavailable when there is none, or an empty one."""
        kind, _, rest = reference.partition(":")
        text = self._from_environment(rest) if kind == "env" else self._from_file(rest)
        if not text:
            raise SecretUnavailable(f"{reference} is empty")
        return Secret(text)

    def command(self, reference: str, ttl_s: float, timeout_s: float) -> SecretCommand:
        """The command behind a reference, which is not run. SecretUnavailable when it could not be."""
        try:
            words = shlex.split(reference.partition(":")[2])
        except ValueError as error:
            raise SecretUnavailable(f"command: cannot be split into words: {error}".lower()) from None
        if not words:
            raise SecretUnavailable("command: names no program")
        program = os.path.expanduser(words[0])
        if os.sep in program:
            program = str(self.base / program)
        folders = self.environ.get("PATH", os.defpath)
        places = [program] if os.sep in program else [os.path.join(one, program) for one in folders.split(os.pathsep)]
        before = {place: stamp_of(place) for place in places}
        found = shutil.which(program, path=folders)
        if found is None:
            self.files.update(before)
            raise SecretUnavailable(f"program {words[0]} cannot be found or executed (it is run without a shell)")
        return SecretCommand((os.path.abspath(found), *words[1:]), str(self.base), ttl_s, timeout_s)

    def _from_environment(self, name: str) -> str:
        try:
            return self.environ[name]
        except KeyError:
            raise SecretUnavailable(
                f"environment variable {name} is not set: export it before the router starts, or use file:PATH"
            ) from None

    def _from_file(self, name: str) -> str:
        path = self.base / Path(name).expanduser()
        self.files[str(path)] = stamp_of(path)
        try:
            # Editors and `kubectl create secret --from-file` leave a newline that nobody meant.
            return read_regular(path, _MOST_BYTES).decode("utf-8").rstrip("\r\n")
        except OSError as error:
            raise SecretUnavailable(f"file {path} cannot be read: {why(error)}") from None
        except UnicodeDecodeError:
            raise SecretUnavailable(f"file {path} is not UTF-8 text") from None
