from router.decisions.worker_restarts import HEALTHY_S, LAST_PAUSE_S, pause_s, young_deaths


def test_a_worker_that_lived_is_replaced_at_once() -> None:
    assert young_deaths(7, HEALTHY_S) == 0
    assert pause_s(0) == 0


def test_the_first_young_death_costs_no_pause_and_the_next_ones_more_and_more() -> None:
    young, pauses = 0, []
    for _ in range(10):
        young = young_deaths(young, 0.5)
        pauses.append(pause_s(young))
    assert pauses[:4] == [0.0, 0.1, 0.2, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S


def test_pauses_stay_finite_after_any_number_of_deaths() -> None:
    assert pause_s(100_000) == LAST_PAUSE_S


def test_one_long_life_is_forgiven_everything() -> None:
    assert pause_s(young_deaths(50, HEALTHY_S + 1)) == 0.0
