"""A `map` that works in several threads."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

ThreadMap = Callable[..., list[Any]]  # called like `map`: a function, and an iterable for each of its arguments


@contextmanager
def thread_map(number: int) -> Iterator[ThreadMap]:
    """Provide a `map` that works in so many threads, the caller's among them; 0 and 1 both mean the caller's alone.

    Decoders, resizing and look-ups release Python's lock, so that threads suffice.
    """
    if number <= 1:
        yield lambda function, *columns: list(map(function, *columns))
        return
    with ThreadPoolExecutor(number - 1) as pool:

        def run(function: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
            rows = list(zip(*columns, strict=True))
            results: list[Any] = [None] * len(rows)
            queue = iter(range(len(rows)))  # shared by the threads: one task for each image would cost a tenth more
            errors: dict[int, Exception] = {}

            def work() -> None:
                while not errors and (index := next(queue, None)) is not None:
                    try:
                        results[index] = function(*rows[index])
                    except Exception as error:
                        errors[index] = error

            others = [pool.submit(work) for _ in range(number - 1)]
            work()
            for other in others:
                other.result()
            if errors:  # the same whatever the threads did: rows before the first error have all been begun
                raise errors[min(errors)]
            return results

        yield run
