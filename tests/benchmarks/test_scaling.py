"""The model of scaling says what its parts say, and the fit finds the costs that made the numbers."""

import dataclasses

import pytest

from benchmarks import costs
from benchmarks.costs import Point
from benchmarks.networks import CASES
from benchmarks.scaling import Cluster, Costs, Cpu, num_chunks, predict, predict_here, useful_batch, useful_workers
from benchmarks.scaling_page import page
from benchmarks.server import Measurement

M, L = CASES["M"], CASES["L"]
FREE = Cpu()
ROW_S = {"S": 1e-6, "M": 25e-6, "L": 1.5e-3, "C": 2.2e-3}
COSTS = Costs(
    server=Cpu(step_s=200e-6, message_s=80e-6, byte_s=0.4e-9, update_s=0.7e-9),
    loop=Cpu(step_s=150e-6, message_s=60e-6, byte_s=0.2e-9, update_s=0.7e-9),
    worker=Cpu(message_s=90e-6, byte_s=0.5e-9),
    row_s=ROW_S,
)
FAST = Cluster(link_bytes_per_s=1e12, round_trip_s=0.0)
SLOW = Cluster(link_bytes_per_s=125e6)


def test_without_costs_twice_the_workers_take_half_the_time() -> None:
    free = Costs(FREE, FREE, FREE, ROW_S)
    one = predict(M, 1, free, FAST)
    assert one.step_s == pytest.approx(M.batch * 25e-6, rel=0.01)
    assert predict(M, 2, free, FAST).step_s == pytest.approx(one.step_s / 2, rel=0.01)
    assert one.waits_for == "computing"


def test_a_slow_link_gives_out_first_at_the_server() -> None:
    found = predict(L, 16, Costs(FREE, FREE, FREE, ROW_S), SLOW)
    assert found.waits_for == found.slowest == "the server's link"
    all_bytes_s = 16 * 4 * L.num_parameters / 125e6
    assert found.step_s < found.compute_s + all_bytes_s, "some of it is hidden"
    assert found.step_s > all_bytes_s


def test_with_a_fast_link_the_event_loop_gives_out() -> None:
    assert predict(L, 64, COSTS, FAST).waits_for == "the server's event loop"


def test_nothing_is_hidden_where_nothing_is_computed() -> None:
    idle = dataclasses.replace(COSTS, row_s=dict.fromkeys(CASES, 0.0))
    assert predict(L, 4, idle, FAST).step_s == pytest.approx(COSTS.loop.seconds(4 * L.num_parameters, 4))


def test_on_one_machine_all_share_its_cpus() -> None:
    size = 4 * L.num_parameters
    total_s = COSTS.server.seconds(size, 2) + 2 * COSTS.worker.seconds(size, 1)
    assert predict_here(size, 2, COSTS, 2) == pytest.approx(total_s / 2)
    assert predict_here(size, 2, COSTS, 1000) == pytest.approx(COSTS.loop.seconds(size, 2))
    one_chunk_s = COSTS.server.seconds(1000, 1) + COSTS.worker.seconds(1000, 1)
    assert predict_here(1000, 1, COSTS, 1000) == pytest.approx(one_chunk_s)


def test_workers_are_useful_until_each_is_worth_half_of_one() -> None:
    ten = Cluster(10e9 / 8)
    most = useful_workers(L, COSTS, ten)
    alone_s = predict(L, 1, COSTS, ten).step_s
    assert 1 < most < 1000
    assert alone_s / predict(L, most, COSTS, ten).step_s >= most / 2
    assert alone_s / predict(L, most + 1, COSTS, ten).step_s < (most + 1) / 2


def test_a_useful_batch_keeps_the_workers_computing_for_half_of_the_time() -> None:
    rows = useful_batch(L, 32, COSTS, SLOW)
    enough, half = (predict(dataclasses.replace(L, batch=n), 32, COSTS, SLOW) for n in (rows, rows // 2))
    assert enough.compute_s >= enough.step_s / 2
    assert half.compute_s < half.step_s / 2


def points() -> list[Point]:
    found = []
    for num_bytes in (38_440, 4_000_000, 100_000_000):
        for n in (1, 2, 8):
            server_s, loop_s = COSTS.server.seconds(num_bytes, n), COSTS.loop.seconds(num_bytes, n)
            workers_s = n * COSTS.worker.seconds(num_bytes, 1)
            found.append(Point(num_bytes, n, Measurement(1.0, server_s, loop_s, workers_s, 0.0)))
    return found


def test_the_fit_finds_the_costs_that_made_the_numbers() -> None:
    found = costs.fit(points(), ROW_S)
    for name in ("server", "loop", "worker"):
        expected, fitted = (dataclasses.asdict(getattr(each, name)) for each in (COSTS, found))
        assert fitted == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_no_cost_is_negative() -> None:
    cheaper = [Point(p.num_bytes, p.workers, Measurement(1.0, 1e-9 / p.num_bytes, 1e-9, 1e-9, 0.0)) for p in points()]
    assert min(dataclasses.astuple(costs.fit(cheaper, ROW_S).server)) >= 0


def test_a_message_carries_a_mebibyte() -> None:
    assert [num_chunks(n) for n in (1, 1 << 20, (1 << 20) + 1)] == [1, 1, 2]


def test_the_page_says_what_gives_out_and_what_to_set() -> None:
    text = page("python -m benchmarks scaling", points(), ROW_S)
    assert (
        "| workers | computing, ms | step at 10 Gbit/s, ms | waits for | step at 100 Gbit/s, ms | waits for |" in text
    )
    assert "\n| 1000 | " in text
    assert "the server's event loop" in text
    assert f"`workers.max = {useful_workers(L, COSTS, Cluster(10e9 / 8))}`" in text
    assert "| 100 MB, 8 workers | 1e+03 | " in text
