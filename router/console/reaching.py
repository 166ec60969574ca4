"""Why nothing that is a router answers at an address: gRPC's own words, told so that a person knows what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from router.console.trouble import ExitCode, Trouble

_TLS_OPTIONS = "--tls, --ca, --cert, --key, which stand before the command"


@dataclass(frozen=True)
class _Sign:
    """marks: what gRPC says, any of them; message and way_out: what is told, {} being the address."""

    marks: tuple[str, ...]
    message: str
    way_out: str


_SIGNS = (
    _Sign(
        ("WRONG_VERSION_NUMBER",),
        "{} does not speak TLS",
        "leave out --tls, --ca, --cert and --key (POINTSMAN_TLS, _CA, _CERT, _KEY), where the network may listen",
    ),
    _Sign(
        ("CERTIFICATE_VERIFY_FAILED",),
        "{} shows a certificate that is not believed",
        "name the authority that it is from: pointsman --ca FILE ... (POINTSMAN_CA)",
    ),
    _Sign(
        ("Hostname Verification Check failed",),
        "{} shows a certificate of another name",
        "use a name that stands in it for --address, or tell the one to expect by POINTSMAN_SERVER_NAME",
    ),
    _Sign(
        ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA"),
        "{} does not let this command in without a certificate that it believes",
        "show one: pointsman --cert FILE --key FILE ... (POINTSMAN_CERT, POINTSMAN_KEY)",
    ),
    _Sign(
        ("Expected SETTINGS frame", "http1.x server"),
        "{} speaks plain HTTP: that is no router's port for commands",
        "is it the metrics port? By default callers use 7432, operators 7433",
    ),
    _Sign(
        ("errors resolving", "lookup failed", "lookup error"),
        "the host of {} is not known",
        "check the name (--address, POINTSMAN_ADDRESS, POINTSMAN_ADMIN_ADDRESS)",
    ),
    _Sign(
        ("Socket closed", "Connection reset"),
        "{} hangs up",
        f"does it speak TLS, or ask for a certificate ({_TLS_OPTIONS})? Or is it PostgreSQL's own port?",
    ),
)


def unreachable(address: str, details: str = "") -> Trouble:
    """No router answers at the address. details: gRPC's words for it, as far as there are any."""
    for sign in _SIGNS:
        if any(mark in details for mark in sign.marks):
            return Trouble(sign.message.format(address), sign.way_out, ExitCode.UNREACHABLE)
    return Trouble(
        f"no router answers at {address}",
        "is it running? Check the address (--address, POINTSMAN_ADDRESS, POINTSMAN_ADMIN_ADDRESS, --dev), and whether "
        f"it speaks TLS ({_TLS_OPTIONS})",
        ExitCode.UNREACHABLE,
    )
