"""One balancing policy a file: which of several eligible endpoints takes the next read.

Here: policies over weights, requests in flight and one drawn number. Not here: who is eligible (routing).
May import: model and stdlib values.
To add one: a file with a class that fulfils Balancer, a name in model/policy.BalancerName, a line in BALANCERS;
tests/decisions/test_balancing.py then runs its contract over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.decisions.balancing.contract import Balancer, Weighted
from router.decisions.balancing.least_in_flight import LeastInFlight
from router.decisions.balancing.smooth_weighted import SmoothWeighted
from router.decisions.balancing.two_choices import TwoChoices
from router.model.policy import BalancerName

__all__ = ["BALANCERS", "Balancer", "Weighted"]

BALANCERS: Mapping[BalancerName, Callable[[], Balancer]] = {
    BalancerName.SMOOTH_WEIGHTED: SmoothWeighted,
    BalancerName.LEAST_IN_FLIGHT: LeastInFlight,
    BalancerName.TWO_CHOICES: TwoChoices,
}
"""A fresh balancer per name; its state belongs to one pool of one tenant, never to two."""
