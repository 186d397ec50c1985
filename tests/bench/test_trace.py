"""Time per class from events, by hand."""

import pytest

from teukenjax.bench.trace import Event, shares

CLASSES = {"dot": "products", "gather": "communication", "loop": "elementwise"}


def event(instruction: str, start: int, end: int, *, kernel: str = "k", device: str = "0"):
    return Event(device, instruction, kernel, float(start), float(end))


def test_communication_counts_where_nothing_else_runs():
    found = shares(
        [event("dot", 0, 60), event("gather", 40, 90), event("loop", 95, 100)], CLASSES, steps=1
    )
    assert found.window_s == pytest.approx(100e-9)
    assert found.share("products") == pytest.approx(0.60)
    assert found.share("communication") == pytest.approx(0.30)
    assert found.hidden_s == pytest.approx(20e-9)
    assert found.idle_s == pytest.approx(5e-9)
    assert found.by_name == 0


def test_a_loop_around_instructions_is_not_counted():
    found = shares([event("while.1", 0, 100), event("dot", 0, 50)], CLASSES, steps=1)
    assert found.seconds == {"products": pytest.approx(50e-9)}
    assert found.window_s == pytest.approx(50e-9)


def test_a_kernel_without_an_instruction_goes_by_its_name_and_is_reported():
    found = shares(
        [event("dot", 0, 75), event("", 75, 100, kernel="nvjet_hsh_128x256")], CLASSES, steps=1
    )
    assert found.share("products") == pytest.approx(1)
    assert found.by_name == pytest.approx(0.25)


def test_steps_and_devices_are_averaged():
    found = shares([event("dot", 0, 100), event("dot", 0, 50, device="1")], CLASSES, steps=2)
    assert found.seconds["products"] == pytest.approx(37.5e-9)
    assert found.window_s == pytest.approx(37.5e-9)
