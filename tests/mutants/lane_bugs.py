"""Bugs in lanes and pools, and in listening."""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.planting import Mutant

_POOL, _PLACES = "router/engine/lane_pool.py", "router/engine/lane_places.py"
_LANE, _PIPELINE = "router/postgres/lane.py", "router/postgres/unit_pipeline.py"
_LANES_REAL = "tests/contracts/test_endpoint_pool_contract.py"

LANES: Sequence[Mutant] = (
    Mutant(
        "cancel_a_commit", _POOL,
        """            if final or _is_committing(unit):
                raise AttemptFailed(self._shared.silent(unit, Stage.COMMIT)) from None
""",
        "",
        tests=("tests/engine/test_lane_pool_stopping.py",),
    ),
    Mutant(
        "cancel_a_neighbour", "router/engine/shared_lanes.py",
        """        if unit.done_at:
            return
        if unit.slot.in_flight == 1:
            self._stop_alone(unit)
        else:
            self._running_loop().call_later(STUCK_S - GRACE_S, self._after_stuck, unit)
""",
        """        if unit.done_at:
            return
        self._stop_alone(unit)
""",
        tests=("tests/engine/test_lane_pool_stopping.py", "tests/engine/test_shared_reads.py"),
    ),
    Mutant(
        "a_notice_at_commit_is_success", _PIPELINE,
        "            self._local_commit = True\n", "            pass\n",
        tests=("tests/postgres/test_local_commit.py",),
    ),
    Mutant(
        "lend_a_tainted_connection", _LANE,
        "        if tainted or self.altered:\n            return CloseReason.TAINTED\n", "",
        tests=(_LANES_REAL,),
    ),
    Mutant(
        "lend_a_connection_in_a_transaction", _LANE,
        "        if self._pgconn.transaction_status != TransactionStatus.IDLE:\n",
        "        if False:\n",
        tests=(_LANES_REAL, "tests/postgres/test_lane.py"),
    ),
    Mutant(
        "lend_a_connection_whose_cancel_may_come", _LANE,
        "        if self._cancel_unconfirmed:\n            return CloseReason.CANCEL_UNCONFIRMED\n", "",
        tests=(_LANES_REAL,),
    ),
    Mutant(
        "a_fence_spares_what_is_lent", "router/postgres/endpoint_pool.py",
        "            lane.abandon(CloseReason.GENERATION)\n        self._retire_inner()",
        "            pass\n        self._retire_inner()",
        tests=(_LANES_REAL, "tests/postgres/test_lane.py"),
    ),
    Mutant(
        "a_lost_commit_is_told_as_a_lost_statement", _PIPELINE,
        "return Stage.COMMIT if unit.commits else Stage.EXECUTE", "return Stage.EXECUTE",
        tests=("tests/contracts/test_lane_contract.py", _LANES_REAL),
    ),
    Mutant(
        "lose_a_permit_on_cancellation", "router/engine/connection_budget.py",
        "            if place.future.done() and not place.future.cancelled() and place.future.result():\n",
        "            if False:\n",
        tests=("tests/engine/test_connection_budget.py",),
    ),
    Mutant(
        "lose_a_lane_on_cancellation", _PLACES,
        "            if slot is not None:  # handed over in the same turn: to the next in line\n"
        "                slot.pinned = False\n                self.put_back(slot)\n",
        "",
        tests=("tests/engine/test_cancellation.py", "tests/engine/test_lane_pool.py"),
    ),
    Mutant(
        "go_on_with_a_cancel_on_its_way", _POOL,
        "slot.given_up = slot.pinned and not (timely and has_arrived(cancelling))",
        "slot.given_up = slot.pinned and not timely",
        tests=("tests/engine/test_lane_pool_stopping.py",),
    ),
    Mutant(
        "no_rollback_before_the_next", _POOL,
        "unclean = lane.in_transaction or slot.residue is Residue.DISCARD",
        "unclean = slot.residue is Residue.DISCARD",
        tests=("tests/engine/test_lane_pool_ending.py",),
    ),
    Mutant(
        "go_on_where_a_read_has_unlocked_its_connection", _PIPELINE,
        'told(READ_ONLY) != b"on" or ', "",
        tests=("tests/stories/test_reads_stay_reads.py",),
    ),
    Mutant(
        "start_a_block_as_a_read", "router/engine/quick_reads.py",
        ".refuse_as_read is not None", ".refuse is not None",
        tests=("tests/engine/test_judging.py",),
    ),
    Mutant(
        "repeat_a_read_only_batch_that_may_have_acted", "router/decisions/retry.py",
        " or (facts.escapes and fault.stage is Stage.COMMIT)", "",
        tests=("tests/engine/test_judging.py",),
    ),
    Mutant(
        "leave_a_type_to_the_next", "router/sql/temporary.py",
        '    "create_enum_stmt": "type_name",\n', "",
        tests=("tests/isolation/test_residue.py",),
    ),
    Mutant(
        "leave_a_batchs_objects_to_the_next", "router/engine/judging.py",
        "            request.residue = max(request.residue, Residue.DISCARD)\n", "            pass\n",
        tests=("tests/isolation/test_residue.py",),
    ),
    Mutant(
        "leave_a_connection_to_a_closed_pool", "router/postgres/endpoint_pool.py",
        "if isinstance(task, ReturnConnection):", "if isinstance(task, ReturnConnection) and not self.closed:",
        tests=("tests/postgres/test_connection_cap.py",),
    ),
)

_LISTENING = ("tests/engine/test_listeners.py",)
LISTENING: Sequence[Mutant] = (
    Mutant(
        "hear_a_former_primary", "router/engine/channel_hub.py",
        "if state.generation != home[1] or state.primary not in (None, home[0]) or endpoint is None:",
        "if endpoint is None:",
        tests=_LISTENING,
    ),
    Mutant(
        "say_nothing_of_a_gap", "router/engine/listener.py",
        "            self._put(self._with_those_before(gap))\n", "            self._with_those_before(gap)\n",
        tests=_LISTENING,
    ),
    Mutant(
        "hear_the_neighbours", "router/decisions/channels.py",
        "if not tenant.channels and tenant.isolation is IsolationMode.DATABASE:", "if not tenant.channels:",
        tests=_LISTENING,
    ),
)
