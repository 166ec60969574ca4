"""The whole configuration as it counts, defaults filled in, as YAML: for `pointsman config show`. Secrets are stars."""

from __future__ import annotations

from typing import Any

import yaml

from router.config.document import parse
from router.config.loaded import LoadedConfig
from router.config.schema import FileConfig


def show(config: LoadedConfig, text: str) -> str:
    """YAML of the effective configuration. text: the file that config was loaded from.

    A reference is no secret, but where one leads tells something: every secret is shown as ***.
    """
    document = parse(text)
    whole = FileConfig.model_validate(document.values)
    values: dict[str, Any] = whole.model_dump(mode="json")
    for cluster in values["clusters"].values():
        _hide_login(cluster["control"])
    for tenant in values["tenants"].values():
        _hide_login(tenant["login"])
        tenant["tokens"] = ["***"] * len(tenant["tokens"])
        _hide_tokens(tenant["callers"])
    _hide_tokens(values["admin"]["callers"])
    values["admin"]["tokens"] = ["***"] * len(values["admin"]["tokens"])
    text_out: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return f"# {config.source}, defaults filled in\n{text_out}"


def _hide_login(login: dict[str, Any]) -> None:
    if login["password"] is not None:
        login["password"] = "***"


def _hide_tokens(callers: list[dict[str, Any]]) -> None:
    for caller in callers:
        if caller["token"] is not None:
            caller["token"] = "***"
