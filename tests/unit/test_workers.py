"""The threads that stages share."""

import threading

from consumer.workers import Workers


def test_work_is_begun_in_the_order_of_its_coming() -> None:
    done: list[int] = []
    ended = threading.Event()
    workers = Workers(1, "test")
    for number in range(100):
        workers.submit(done.append, number)
    workers.submit(ended.set)
    assert ended.wait(10)
    workers.close()
    workers.join(10)
    assert done == list(range(100))


def test_so_many_threads_work_side_by_side() -> None:
    met = threading.Barrier(3)
    workers = Workers(2, "test")
    workers.submit(met.wait, 10)
    workers.submit(met.wait, 10)
    met.wait(10)  # broken, and so an error, if one waited for the other
    workers.close()
    workers.join(10)


def test_what_escapes_from_work_costs_no_thread() -> None:
    workers = Workers(1, "test")
    done = threading.Event()

    def fails() -> None:
        raise ValueError("a defect")

    workers.submit(fails)
    workers.submit(done.set)
    assert done.wait(10)
    workers.close()
    workers.join(10)


def test_what_has_not_begun_when_it_closes_never_begins() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        go_on.wait(10)
        done.append("under way")

    workers = Workers(1, "test")
    workers.submit(first)
    workers.submit(done.append, "not begun")
    assert begun.wait(10)
    workers.close()
    workers.submit(done.append, "after the close")
    go_on.set()
    workers.close()
    workers.join(10)
    assert done == ["under way"]
    assert "test_0" not in {thread.name for thread in threading.enumerate()}
