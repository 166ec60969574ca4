"""Bugs in failover, in routing and holds, in consistency tokens, in retries."""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.planting import Mutant

_PROMOTION, _MOVING = "router/decisions/promotion.py", "router/engine/moving.py"
_FAILOVER, _PRIMARY = "router/decisions/failover.py", "router/decisions/primary.py"
_RETRY = "router/decisions/retry.py"

FAILOVER: Sequence[Mutant] = (
    Mutant(
        "skip_the_fence", _MOVING,
        'result = await self.act("fence", name, self._surgeon.fence(self._endpoints[name], self.deadline()))',
        'result = await self.act("fence", name, self._surgeon.look(self._endpoints[name], self.deadline()))',
        tests=("tests/engine/test_supervisor.py",),
    ),
    Mutant(
        "attach_before_commits_wait", _MOVING,
        "while not await self.act(\n", "while False and not await self.act(\n",
        tests=("tests/engine/test_supervisor.py",),
    ),
    Mutant(
        "fence_too_few", _PROMOTION,
        "return max(1, listed - k + 1, listed // 2 + 1)", "return 1",
        tests=("tests/decisions/test_promotion.py",),
    ),
    Mutant(
        "count_a_fenced_standby_twice", _PROMOTION,
        "if len(counted) < plan.needed:", "if 2 * len(counted) < plan.needed:",
        tests=("tests/decisions/test_promotion.py",),
    ),
    Mutant(
        "promote_beside_a_rival", _PROMOTION,
        "return not claim.in_recovery and all(claim.timeline >= one.timeline for one in fenced)", "return False",
        tests=("tests/engine/test_supervisor.py",),
    ),
    Mutant(
        "choose_the_least_advanced", _PROMOTION,
        "return max(counted, key=lambda name: (fenced[name].timeline,",
        "return min(counted, key=lambda name: (fenced[name].timeline,",
        faults="KILL_PRIMARY ONE_WAY", seed=10,
    ),
    Mutant(
        "begin_a_timeline_twice", _PROMOTION,
        "if any(s.claim is not None and s.claim.timeline >= term for s in counted):",
        "if counted:",
        tests=("tests/decisions/test_promotion.py",),
    ),
    Mutant(
        "ignore_what_standbys_hear", _PROMOTION,
        "if len(counted) - len(hearing) >= needed:", "if len(counted) >= needed:",
        faults="CUT_ROUTER_PRIMARY", seed=2,
    ),
    Mutant(
        "believe_one_look_at_the_standbys", _PROMOTION,
        "return self.probed_at - self.lost_since >= needed_s", "return True",
        tests=("tests/decisions/test_promotion.py", "tests/engine/test_supervisor.py"),
    ),
    Mutant(
        "replace_a_primary_that_restarts", _FAILOVER,
        "return state.doubted_at is not None and now - state.doubted_at >= policy.restart_grace_s", "return True",
        tests=("tests/decisions/test_failover.py",),
    ),
    Mutant(
        "confirm_at_the_first_refusal", _FAILOVER,
        "return facts.refused_since is not None and now - facts.refused_since >= policy.confirm_s",
        "return facts.refused_since is not None",
        tests=("tests/decisions/test_failover.py",),
    ),
    Mutant(
        "one_lost_probe_is_down", "router/decisions/health.py",
        "if missed.misses >= policy.misses or state.state in", "if missed.misses >= 1 or state.state in",
        tests=("tests/decisions/test_health.py",),
    ),
    Mutant(
        "not_in_recovery_is_the_primary", _PRIMARY,
        "highest = tuple(name for name in writable if own[name].timeline == top)", "highest = tuple(writable[:1])",
        tests=("tests/decisions/test_primary.py",),
    ),
    Mutant(
        "forget_the_accepted_timeline", _PRIMARY,
        "top = max([known_term, *(own[name].timeline for name in writable)])",
        "top = max((own[name].timeline for name in writable), default=known_term)",
        tests=("tests/decisions/test_primary.py",),
    ),
    Mutant(
        "a_replica_of_a_former_primary_is_up_to_date", "router/decisions/snapshot.py",
        "lag_s=_lag(machine, claim, seen),", "lag_s=seen.lag_s,",
        tests=("tests/decisions/test_snapshot.py",),
    ),
    Mutant(
        "forget_what_is_being_noted", "router/decisions/machine.py",
        "return Term(max(self.term, noted, self.wanted.term if self.wanted is not None else NO_TERM))",
        "return self.term",
        tests=("tests/decisions/test_resuming.py", "tests/decisions/test_failover_orders.py"),
    ),
    Mutant(
        "hold_over_a_move_that_has_begun", "router/decisions/resuming.py",
        "return note.stage is not MoveStage.HOLD or (state.operation is Operation.NONE and state.wanted is None)",
        "return True",
        tests=("tests/engine/test_switchover.py",),
    ),
    Mutant(
        "forget_the_journal", "router/decisions/resuming.py", "    if record is None:\n", "    if True:\n",
        tests=("tests/decisions/test_resuming.py",),
    ),
    Mutant(
        "ask_nobody_to_confirm", _PROMOTION,
        "return SyncRule(plan.rule.method, max(1, min(plan.rule.k, len(left))), cohort)", "return SyncRule()",
        tests=("tests/decisions/test_promotion.py",),
    ),
    Mutant(
        "the_old_primary_returns_after_a_pledge", _FAILOVER,
        "pledged=event.pledged or state.pledged,", "pledged=None,",
        tests=("tests/decisions", "tests/engine/test_supervisor.py"),
    ),
    Mutant(
        "trust_the_control_file", "router/postgres/role_query.py",
        "THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer",
        "THEN (SELECT timeline_id FROM pg_control_checkpoint())",
        tests=("tests/postgres/test_surgeon.py", "tests/postgres/test_prober.py"),
    ),
    Mutant(
        "ask_a_transaction_of_the_recovery", "router/postgres/role_query.py",
        "current_setting('default_transaction_read_only')", "current_setting('transaction_read_only')",
        tests=("tests/postgres/test_prober.py",),
    ),
)

ROUTING: Sequence[Mutant] = (
    Mutant(
        "who_waits_when_writes_are_held_goes_on", "router/engine/endpoints.py",
        "        pool.send_on(HELD)\n", "        pass\n",
        tests=("tests/engine/test_endpoints.py",),
    ),
    Mutant(
        "leave_late_writes_behind", "router/engine/switchover.py",
        "while not await self._is_held(plan.primary):", "while False:",
        tests=("tests/engine/test_switchover.py",),
    ),
    Mutant(
        "who_waited_goes_to_the_old_primary", "router/engine/lane_places.py",
        'self.fail_lines(Fault(FaultKind.STALE, Stage.ACQUIRE, message="the primary changed while it waited"))',
        "self.serve()",
        tests=("tests/engine/test_lane_pool_ending.py",),
    ),
    Mutant(
        "strong_reads_use_replicas", "router/decisions/routing.py",
        "if want.access is Access.READ_WRITE or want.read is ReadFrom.PRIMARY:",
        "if want.access is Access.READ_WRITE:",
        faults="REPLAY_LAG SLOW_LINKS",
    ),
    Mutant(
        "a_doubted_primary_is_published", "router/decisions/machine.py",
        "return self.primary if self.phase in ROUTED else None", "return self.primary",
        faults="KILL_PRIMARY",
    ),
    Mutant(
        "pools_are_not_fenced", "router/engine/endpoints.py",
        "pool.fence(state.generation)", "pass",
        tests=("tests/engine/test_endpoints.py",),
    ),
    Mutant(
        "retired_pools_are_not_fenced", "router/engine/endpoints.py",
        "_tell(pool, out.key.access, out.server, before, state)", "pass",
        tests=("tests/engine/test_endpoints.py",),
    ),
    Mutant(
        "a_removed_tenant_comes_back", "router/engine/directory.py",
        "raise removed(tenant.name)", "return tenant",
        tests=("tests/engine/test_tenants_removed.py",),
    ),
    Mutant(
        "what_was_judged_for_another_runs", "router/engine/endpoints.py",
        "if newest is not tenant and not newest.same_home(tenant):", "if False:",
        tests=("tests/engine/test_tenants_changed.py",),
    ),
    Mutant(
        "the_deadline_does_not_end_a_hold", "router/engine/placement.py",
        "min(call.request.deadline, call.hold_until)", "call.hold_until",
        faults="KILL_PRIMARY",
    ),
    Mutant(
        "a_hold_has_no_window", "router/engine/holding.py",
        "held = self._enter(tenant, size, now, min(window_end, deadline), window_end <= deadline)",
        "held = self._enter(tenant, size, now, deadline, window_end <= deadline)",
        tests=("tests/engine/test_holding.py",),
    ),
    Mutant(
        "a_cancelled_hold_keeps_its_place", "router/engine/holding.py",
        "            self._leave(held, HoldEndReason.CANCELLED)\n", "",
        tests=("tests/engine/test_holding.py",),
    ),
    Mutant(
        "a_request_that_failed_keeps_its_admission", "router/engine/executor.py",
        """                answer = await self._attempt_until_answered(runtime, call, failure)
            finally:
                runtime.admission.leave()
""",
        """                answer = await self._attempt_until_answered(runtime, call, failure)
            except AttemptFailed:
                raise
            runtime.admission.leave()
""",
        tests=("tests/engine/test_cancellation.py", "tests/engine/test_admission.py"),
    ),
)

TOKENS: Sequence[Mutant] = (
    Mutant(
        "what_was_just_committed_is_not_waited_for", "router/engine/causal_reads.py",
        "        if need.now:\n            return None\n", "",
        faults="REPLAY_LAG SLOW_LINKS", scenarios="TOKENS", seed=8,
    ),
    Mutant(
        "any_replica_fulfils_a_token", "router/decisions/consistency.py",
        "return endpoint.term >= need.timeline and max(told, asked) >= need.lsn",
        "return endpoint.term >= need.timeline",
        faults="REPLAY_LAG", scenarios="TOKENS",
    ),
    Mutant(
        "what_a_replica_told_outlives_its_crash", "router/engine/positions.py",
        " and at >= endpoints[name].position_at", "",
        tests=("tests/engine/test_positions.py",),
    ),
)

RETRIES: Sequence[Mutant] = (
    Mutant(
        "repeat_a_write_of_unknown_outcome", _RETRY,
        "keyed = facts.keyed and not facts.interactive", "keyed = not facts.interactive",
        faults="TERMINATE", seed=3,
    ),
    Mutant(
        "a_lost_commit_is_undone", _RETRY,
        "        return _Standing.OPEN\n    if facts.first_row_sent",
        "        return _Standing.UNDONE\n    if facts.first_row_sent",
        faults="TERMINATE", seed=3,
    ),
    Mutant(
        "a_lost_commit_of_a_batch_is_undone", _RETRY,
        "not (facts.batch and fault.stage is not Stage.COMMIT)", "not facts.batch",
        faults="CUT_STANDBYS CRASH_BACKEND", seed=2,
    ),
    Mutant(
        "a_lost_commit_of_a_transaction_is_undone", _RETRY,
        "return _Standing.OPEN if writes and fault.stage is Stage.COMMIT else _Standing.ENDED",
        "return _Standing.ENDED",
        faults="CUT_STANDBYS CRASH_BACKEND", seed=2,
    ),
    Mutant(
        "a_local_commit_is_undone", _RETRY,
        "return _lost(facts, _Standing.OPEN, evidence=False)\n        case FaultKind.KEY_BUSY",
        "return _lost(facts, _Standing.UNDONE, evidence=False)\n        case FaultKind.KEY_BUSY",
        tests=("tests/decisions/test_retry.py",),
    ),
    Mutant(
        "a_doubt_ends_with_the_attempt", "router/engine/attempts.py",
        "if not call.in_doubt or error.executed in (Executed.MAYBE, Executed.YES):", "if error:",
        faults="FREEZE_PRIMARY", scenarios="KEYED", seed=18,
    ),
    Mutant(
        "a_used_key_is_answered_before_its_standby_has_it", "router/decisions/keys.py",
        'whole = (Statement(b"BEGIN READ WRITE"), key.statement(_LOOK), ASSERT_DURABILITY, COMMIT)',
        'whole = Statement(b"BEGIN READ WRITE"), key.statement(_LOOK[:-11]), ASSERT_DURABILITY, COMMIT',
        faults="CUT_STANDBYS CRASH_BACKEND", scenarios="KEYED", seed=3,
    ),
    Mutant(
        "a_copys_data_is_not_compared", "router/engine/keyed_copies.py",
        "    if stored.digest != digest.whole():\n        raise keys.reused()\n", "",
        tests=("tests/engine/test_keyed_copies.py",),
    ),
    Mutant(
        "a_key_answers_for_another_request", "router/engine/keyed_writes.py",
        "    if stored.digest != digest:\n        raise keys.reused()\n", "",
        tests=("tests/engine", "-k", "key"),
    ),
)
