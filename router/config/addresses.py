"""Addresses to listen on: host:port, [IPv6]:port, or unix:PATH."""

from __future__ import annotations

import ipaddress

Address = tuple[str, int]
"""Host and port; for a Unix socket "unix:PATH" and 0."""

_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})


class AddressMistake(ValueError):
    """Not an address. str() is what the operator reads."""


def parse_address(text: str) -> Address:
    """Take an address apart. Port 0 lets the system choose. AddressMistake when it is none."""
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise AddressMistake("unix: needs the path of a socket after it")
        return text, 0
    host, colon, port = text.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise AddressMistake(f"must be host:port, such as 0.0.0.0:7432 or [::]:7432, not {text!r}")
    if not port.isdecimal() or int(port) > 65535:
        raise AddressMistake(f"must end with a port between 0 and 65535, not {port!r}")
    return host.strip("[]").lower(), int(port)


def clash(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on at once."""
    if one[0].startswith("unix:") or other[0].startswith("unix:"):
        return one == other
    if one[1] != other[1] or one[1] == 0:
        return False
    return one[0] == other[0] or one[0] in _EVERYWHERE or other[0] in _EVERYWHERE


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach it. A name is believed to be elsewhere, except localhost."""
    host = address[0]
    if host.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
