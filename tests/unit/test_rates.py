"""Budgets of many keys: each its own, refilled by time, and forgotten when full."""

from tidegate.rates import FORGET_EVERY_S, Rates


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    rates = Rates(10, 20)
    assert sum(rates.take("a", 100.0) for _ in range(50)) == 20
    assert sum(rates.take("a", 100.5) for _ in range(50)) == 5
    assert sum(rates.take("a", 200.0) for _ in range(50)) == 20


def test_each_key_has_its_own_budget() -> None:
    rates = Rates(1, 1)
    assert [rates.take(key, 0.0) for key in (1, 2, 1, 2)] == [True, True, False, False]


def test_a_rate_of_zero_limits_nothing_and_remembers_nobody() -> None:
    rates = Rates(0, 0)
    assert all(rates.take(1, 0.0) for _ in range(1000))
    assert len(rates) == 0


def test_who_was_not_busy_for_a_while_is_forgotten() -> None:
    rates = Rates(10, 20)
    for key in range(1000):
        rates.take(key, 0.0)
    assert len(rates) == 1000
    rates.take("new", FORGET_EVERY_S + 1)
    assert len(rates) == 1


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    rates = Rates(1, 2)
    assert [rates.take(1, 100.0) for _ in range(3)] == [True, True, False]
    assert not rates.take(1, 50.0)
