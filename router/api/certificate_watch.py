"""Whether the files of the ports' certificates could serve, for operators: looked at now and then, as a port may have
no new connection for days, and only these take new certificates (certificates.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from router.api.certificates import NotUsable, Port, PortFiles, Signature
from router.engine.alarms import Alarms
from router.model.certificates import PortCertificates
from router.model.events import CredentialKind
from router.model.port_policies import ListenerTls
from router.model.views import CertificateTrouble
from router.ports import Clock, EventSink

LOOK_S = 1.0
"""Files are judged when they have looked the same twice: who writes them may still be writing."""


class CertificateWatch:
    """Of all ports of a router; its workers read the same files. To be used inside one event loop.

    What could serve last is kept where it is asked for: a worker that starts while the files cannot serve goes on with
    what its siblings have.
    """

    def __init__(self, ports: Mapping[Port, ListenerTls], clock: Clock, events: EventSink) -> None:
        self._looks = {port: Look(PortFiles(tls)) for port, tls in ports.items() if tls.on}
        self._troubles: dict[Port, tuple[str, float]] = {}
        self._clock = clock
        self._alarms: Alarms[Port] = Alarms(CredentialKind.CERTIFICATES, clock, events)

    def troubles(self) -> tuple[CertificateTrouble, ...]:
        """Ports whose files are of no use, so that those before go on."""
        now = self._clock.now()
        return tuple(CertificateTrouble(port, problem, now - at) for port, (problem, at) in self._troubles.items())

    async def keep(self, port: Port) -> None:
        """Keep what could serve last of a port, from now on."""
        if port in self._looks:
            await asyncio.to_thread(self._looks[port].keep)

    def kept(self, port: Port) -> PortCertificates | None:
        """None: nothing is kept, or could serve since."""
        look = self._looks.get(port)
        return look.good if look is not None else None

    async def run(self, every_s: float = LOOK_S) -> None:
        """Look at them, until cancelled; ends at once where no port speaks TLS."""
        while self._looks:
            await self._clock.sleep(every_s)
            for port, look in self._looks.items():
                problem = await asyncio.to_thread(look.problem)
                if problem:
                    self._troubles[port] = (problem, self._troubles.get(port, ("", self._clock.now()))[1])
                    self._alarms.begin(port, port, problem)
                elif problem is not None:
                    self._troubles.pop(port, None)
                    self._alarms.end(port)


class Look:
    """At the files of one port."""

    def __init__(self, files: PortFiles) -> None:
        self._files = files
        self._seen: tuple[Signature, str] | None = None
        self._judged: tuple[Signature, str] | None = None
        self._problem = ""
        self._keeps = False
        self.good: PortCertificates | None = None
        """What could serve last, if it is kept."""

    def keep(self) -> None:
        """Keep it, from now on. Blocking."""
        self._keeps = True
        with contextlib.suppress(NotUsable):
            self._read(self._files.look())

    def problem(self) -> str | None:
        """Why they cannot serve; empty: they can; None: they change right now. Blocking."""
        signature: Signature = ()
        problem = ""
        try:
            signature = self._files.look()
        except NotUsable as error:
            problem = str(error)
        before, self._seen = self._seen, (signature, problem)
        if self._seen != before:
            return None
        if self._seen != self._judged:
            self._judged, self._problem = self._seen, problem or self._read(signature)
        return self._problem

    def _read(self, signature: Signature) -> str:
        try:
            found = self._files.read()
            if self._keeps and self._files.look() == signature:
                self.good = found
        except NotUsable as error:
            return str(error)
        return ""
