"""The step graph: order by need, one failure never hides another step."""

import threading
from concurrent.futures import ThreadPoolExecutor

from edgepack.graph import Graph


def test_a_step_gets_the_results_of_what_it_needs() -> None:
    with ThreadPoolExecutor(2) as pool:
        graph = Graph(pool)
        one = graph.add("one", lambda: 1)
        two = graph.add("two", lambda: 2)
        total = graph.add("sum", lambda a, b: a + b, one, two)
        graph.finish()

    assert total.result() == 3


def test_a_step_that_needs_a_failed_one_fails_with_the_same_reason_and_others_go_on() -> None:
    def fail() -> int:
        raise ValueError("first reason")

    with ThreadPoolExecutor(1) as pool:
        graph = Graph(pool)
        bad = graph.add("bad", fail)
        after = graph.add("after", lambda x: x, bad)
        other = graph.add("other", lambda: "fine")
        graph.finish()

    assert after.exception() is bad.exception()
    assert other.result() == "fine"


def test_settle_runs_when_some_needs_failed() -> None:
    def fail() -> int:
        raise ValueError

    with ThreadPoolExecutor(1) as pool:
        graph = Graph(pool)
        futures = [graph.add("good", lambda: 1), graph.add("bad", fail)]
        good = graph.settle("count", lambda *fs: sum(f.exception() is None for f in fs), *futures)
        graph.finish()

    assert good.result() == 1


def test_one_worker_is_enough_for_a_deep_graph() -> None:
    with ThreadPoolExecutor(1) as pool:
        graph = Graph(pool)
        last = graph.add("0", lambda: 0)
        for _ in range(50):
            last = graph.add("n", lambda n: n + 1, last)
        graph.finish()

    assert last.result() == 50


def test_of_the_steps_that_could_start_the_most_urgent_does() -> None:
    ran: list[str] = []
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        graph = Graph(pool)
        first = graph.add("first", gate.wait)
        for name, urgency in (("low", 0), ("high", 2), ("middle", 1), ("also high", 2)):
            graph.add(name, lambda _, name=name: ran.append(name), first, urgency=urgency)
        gate.set()
        graph.finish()

    assert ran == ["high", "also high", "middle", "low"]
