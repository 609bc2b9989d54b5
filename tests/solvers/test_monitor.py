import numpy as np
import pytest

from refnorm.solvers import Diverged, Monitor


def test_history_has_one_entry_an_iteration_and_quantity():
    monitor = Monitor("descent")
    for value in (3.0, 2.0, 1.0):
        assert monitor.record(loss=value, gap=value / 2) is False
    assert monitor.n_iter == 3
    assert monitor.history()["loss"].tolist() == [3.0, 2.0, 1.0]
    assert monitor.history()["gap"].tolist() == [1.5, 1.0, 0.5]


def test_callback_sees_every_iteration_and_can_stop():
    seen = []

    def callback(progress):
        seen.append((progress.method, progress.n_iter, dict(progress.values)))
        return progress.n_iter == 2

    monitor = Monitor("descent", callback=callback)
    assert [monitor.record(loss=1.0), monitor.record(loss=0.5)] == [False, True]
    assert seen == [("descent", 1, {"loss": 1.0}), ("descent", 2, {"loss": 0.5})]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e12])
def test_divergence_is_an_error_that_says_what_to_do(value):
    monitor = Monitor("descent", hint="use a smaller step_size")
    monitor.record(loss=2.0)
    with pytest.raises(
        Diverged, match=r"descent: diverged at iteration 2: loss = .* \(it began at 2\); use a smaller step_size"
    ) as caught:
        monitor.record(loss=value)
    assert len(caught.value.history["loss"]) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_may_diverge_at_once(value):
    with pytest.raises(Diverged, match="diverged at iteration 1"):
        Monitor("descent").record(loss=value)


def test_a_large_beginning_is_no_divergence():
    monitor = Monitor("descent")
    assert monitor.record(loss=1e30) is False
    assert monitor.record(loss=1e31) is False


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="callback: expected a function of a Progress, or None, got int"):
        Monitor("descent", callback=3)
    with pytest.raises(ValueError, match="growth: expected a finite number > 0"):
        Monitor("descent", growth=0.0)
