"""Steps that start as soon as what they need is there, the most urgent first.

The step graph is an ordinary set of futures over a ``concurrent.futures`` executor. A step that needs a failed
step fails with the same exception, so the reason that reaches the user is the first one.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """One step of the graph, for listing: its title ("" for one that isn't listed), and its future."""

    title: str
    future: Future[Any]


class Graph:
    """Adds steps to an executor in the order of their needs."""

    def __init__(self, executor: Executor) -> None:
        self.nodes: list[Node] = []
        self._executor = executor
        self._lock = threading.Lock()
        self._ready: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, title: str, work: Callable[..., T], *needs: Future[Any], urgency: int = 0) -> Future[T]:
        """Run ``work(*results of needs)`` when all needs are done; returns at once.

        Of the steps that could start, the one with the highest `urgency` does, then the one that was ready first.
        """
        future: Future[T] = Future()
        with self._lock:
            self.nodes.append(Node(title, future))
        left = len(needs)
        guard = threading.Lock()

        def one_is_done(_: Future[Any]) -> None:
            nonlocal left
            with guard:
                left -= 1
                if left > 0:
                    return
            self._start(future, work, needs, urgency)

        if not needs:
            self._start(future, work, needs, urgency)
        for need in needs:
            need.add_done_callback(one_is_done)
        return future

    def settle(self, title: str, work: Callable[..., T], *needs: Future[Any], urgency: int = 0) -> Future[T]:
        """Run ``work(*needs)`` when all needs are done, well or badly: it gets the futures themselves."""
        ready: list[Future[Any]] = []
        for need in needs:
            done: Future[Any] = Future()
            need.add_done_callback(lambda _, done=done, need=need: done.set_result(need))  # type: ignore[misc]
            ready.append(done)
        return self.add(title, work, *ready, urgency=urgency)

    def finish(self) -> None:
        """Wait for every step, whether it fails or not. Interrupts pass through."""
        while True:
            with self._lock:
                futures = [node.future for node in self.nodes]
            wait(futures)
            with self._lock:
                if len(self.nodes) == len(futures):
                    return

    def _start(self, future: Future[T], work: Callable[..., T], needs: tuple[Future[Any], ...], urgency: int) -> None:
        def run() -> None:
            try:
                future.set_result(work(*(need.result() for need in needs)))
            except BaseException as error:
                future.set_exception(error)

        failed = next((need.exception() for need in needs if need.exception() is not None), None)
        if failed is not None:
            future.set_exception(failed)
            return
        with self._lock:
            heapq.heappush(self._ready, (-urgency, next(self._order), run))
        try:
            self._executor.submit(self._run_next)
        except RuntimeError as error:  # the executor is shutting down after an interrupt
            future.set_exception(error)

    def _run_next(self) -> None:
        with self._lock:
            _, _, run = heapq.heappop(self._ready)
        run()
