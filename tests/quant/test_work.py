# SPDX-License-Identifier: Apache-2.0
import time

from lutwise.quant.work import Speed, Work, measure_speed, product


def test_seconds_add_up() -> None:
    speed = Speed(flops=100.0, numbers=10.0, call_s=0.5)
    first, second = Work(flops=200.0, calls=2.0), Work(numbers=30.0)
    assert speed.seconds(first) == 3.0
    assert speed.seconds(first + second) == 6.0
    assert speed.seconds((first + second).times(4)) == 24.0


def test_narrow_products_are_slower() -> None:
    assert product(48.0, 24).flops == 96.0
    assert product(48.0, 1).flops > product(48.0, 8).flops > product(48.0, 512).flops > 48.0


def test_a_machine_is_measured_quickly_and_plausibly() -> None:
    start = time.process_time()
    speed = measure_speed()
    assert time.process_time() - start < 5
    # From a busy small board to a large server.
    assert 1e8 < speed.flops < 1e14
    assert 1e7 < speed.numbers < 1e12
    assert 1e-8 < speed.call_s < 1e-3
