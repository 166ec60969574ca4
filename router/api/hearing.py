"""Listen: what a tenant's channels bring, as messages, for as long as its caller may and wants to hear it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pointsman.v1 import query_service_pb2 as pb

from router.api import translate
from router.api.calls import Call
from router.api.drain import Drain
from router.api.rpc_roles import NEEDED, check_role
from router.api.surface import Listeners
from router.model.errors import bad_request
from router.model.listening import Draining, Gap, Heartbeat, Notification, Ready
from router.model.reasons import GapReason, RefuseReason
from router.model.request import Method, Request
from router.model.topology import Tenant
from router.ports import Chance, Clock

METHOD_NAME = "pointsman.v1.QueryService.Listen"
MOST_CHANNELS = 1024
"""Of one request; what a tenant may have is its own limit."""
GAP_REASONS = {reason: pb.GapReason.Value(f"GAP_REASON_{reason.name}") for reason in GapReason}


class Hearing:
    """What QueryService does for Listen."""

    def __init__(self, listeners: Listeners, drain: Drain, chance: Chance, clock: Clock) -> None:
        self._listeners = listeners
        self._drain = drain
        self._chance = chance
        self._clock = clock

    async def listen(self, call: Call[Tenant], message: pb.ListenRequest) -> AsyncGenerator[pb.ListenResponse, None]:
        """ListenResponses, until the caller goes or may not hear more."""
        if len(message.channels) > MOST_CHANNELS:
            words = f"{len(message.channels)} channels are named, a stream has at most {MOST_CHANNELS}"
            raise bad_request(RefuseReason.BAD_REQUEST, words, limit=MOST_CHANNELS)
        request_id = translate.request_id_from(message.request_id) or self._chance.identifier()
        request = Request(Method.LISTEN, (), call.deadline(call.caller.policy, 0), request_id=request_id)
        call.counted = True
        listener = await self._listeners.open(call.caller, request, message.channels)
        unsubscribe = self._drain.subscribe(listener.drain)
        heartbeat_ms = int(call.caller.policy.listen_heartbeat_s * 1000)
        try:
            if self._drain.begun:
                listener.drain()
            while True:
                heard = await listener.next()
                # Years may lie between two of them: whoever may not call any more hears no more either.
                check_role(call.prove().role, NEEDED[METHOD_NAME], "Listen")
                if isinstance(heard, Notification):
                    yield _notifications([heard, *listener.more()])
                else:
                    yield self._message(heard, heartbeat_ms)
        finally:
            unsubscribe()
            listener.close()

    def _message(self, heard: Ready | Gap | Heartbeat | Draining, heartbeat_ms: int) -> pb.ListenResponse:
        match heard:
            case Ready(endpoint, topology):
                ready = pb.ListenReady(endpoint=endpoint, topology=topology, heartbeat_ms=heartbeat_ms)
                return pb.ListenResponse(ready=ready)
            case Gap(reason, since, missed):
                since_ms = max(0, int((self._clock.now() - since) * 1000))
                return pb.ListenResponse(
                    gap=pb.ListenGap(reason=GAP_REASONS[reason], since_ms=since_ms, missed=missed)
                )
            case Heartbeat(listening):
                return pb.ListenResponse(heartbeat=pb.ListenHeartbeat(listening=listening))
            case Draining():
                return pb.ListenResponse(draining=pb.ListenDraining())


def _notifications(heard: list[Notification]) -> pb.ListenResponse:
    message = pb.ListenResponse()
    add = message.notifications.notifications.add
    for one in heard:
        add(channel=one.channel, payload=one.payload, process_id=one.process_id)
    return message
