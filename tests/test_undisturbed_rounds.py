"""Figures that are measured beside a process that keeps cores busy, for a while or all the time."""

import multiprocessing
import time

import pytest

from speech import usage
from speech.calibration.undisturbed_rounds import MachineBusy, attempt_measurement, measure_rounds
from tests.busy import CORES, busy_processes

pytestmark = pytest.mark.quiet

TOOK_S = 0.15


def burn(seconds: float = TOOK_S) -> float:
    """Computes for a while; returns the moment at which it began."""
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        pass
    return began


def burn_in_child() -> None:
    child = multiprocessing.get_context("fork").Process(target=burn)
    child.start()
    burn()
    child.join()
    child.close()


@pytest.mark.parametrize("work", [burn, burn_in_child, lambda: time.sleep(TOOK_S)])
@pytest.mark.parametrize("counted", [True, False], ids=["listed", "not listed"])
def test_own_work_is_no_disturbance_and_that_of_others_is(monkeypatch, work, counted) -> None:
    monkeypatch.setattr(usage, "CHILDREN_ARE_LISTED", counted and usage.CHILDREN_ARE_LISTED)
    # Whatever else this machine does meanwhile adds to both
    alone = min(attempt_measurement(work).external_fraction for _ in range(3))
    with busy_processes(1):
        time.sleep(0.1)
        beside = min(attempt_measurement(work).external_fraction for _ in range(3))
    assert alone < usage.external_limit(CORES)
    assert beside > max(usage.external_limit(CORES), alone + 0.3 / CORES)


def test_a_disturbed_value_is_replaced_by_a_later_one() -> None:
    with busy_processes(CORES, seconds=2.0):
        began = time.perf_counter()
        time.sleep(0.2)
        values = measure_rounds(
            {"first": lambda values: burn(), "second": lambda values: burn()}, 3
        )
    assert [len(measured) for measured in values.values()] == [3, 3]
    assert min(min(measured) for measured in values.values()) > began + 1.5


def test_figures_are_measured_in_turn_and_see_the_values_before_them() -> None:
    order: list[str] = []

    def measure(name: str, values) -> int:
        order.append(name)
        return len(values["a"])

    values = measure_rounds(
        {name: lambda values, name=name: measure(name, values) for name in "ab"}, 3
    )
    if order == list("ababab"):  # else something disturbed one
        assert values == {"a": [0, 1, 2], "b": [1, 2, 3]}
    assert set(order) == {"a", "b"}
    again = measure_rounds({"a": lambda values: "new"}, 4, known=values)
    assert again == {"a": [*values["a"], "new"]}


def test_without_an_undisturbed_moment_there_is_no_value() -> None:
    measured: list[float] = []
    with busy_processes():
        time.sleep(0.2)
        with pytest.raises(MachineBusy, match=r"\d+ %"):
            measure_rounds({"figure": lambda values: measured.append(burn())}, 2, patience_s=1.0)
    assert len(measured) >= 2


def test_fewer_rounds_suffice_for_figures_that_take_long() -> None:
    values = measure_rounds({"slow": lambda values: burn()}, 30, enough_s=2 * TOOK_S)
    assert len(values["slow"]) in (2, 3)
