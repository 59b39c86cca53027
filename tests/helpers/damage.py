"""Random damage to files: bits, cuts, insertions and swaps, most of them where structures are."""

import random
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]


def damaged(data: bytes, seed: int) -> bytes:
    """Return a file with the damage of this number."""
    choose = random.Random(seed)
    mutate = choose.choice(_MUTATIONS)
    return (_in_headers(mutate) if choose.random() < 0.7 else mutate)(data, choose)


def cut_in_headers(data: bytes, seed: int) -> bytes:
    """Return a file that ends early in what describes it."""
    return _in_headers(_cut)(data, random.Random(seed))


def _flip(data: bytes, choose: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 16))):
        changed[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, choose: random.Random) -> bytes:
    place, values = choose.randrange(len(data)), choose.choice((b"\xff" * 8, bytes(8), choose.randbytes(4)))
    return data[:place] + values + data[place + len(values) :]


def _cut(data: bytes, choose: random.Random) -> bytes:
    return data[: choose.randrange(len(data))]


def _leave_out(data: bytes, choose: random.Random) -> bytes:
    place = choose.randrange(len(data))
    return data[:place] + data[place + choose.choice((1, 2, 64, 4096)) :]


def _insert(data: bytes, choose: random.Random) -> bytes:
    place = choose.randrange(len(data))
    return data[:place] + choose.randbytes(choose.choice((1, 4, 300))) + data[place:]


def _swap(data: bytes, choose: random.Random) -> bytes:
    size = min(choose.choice((1, 8, 200)), len(data) // 4)
    first, second = sorted(choose.randrange(len(data) - 2 * size) for _ in range(2))
    second = max(second, first + size)
    a, b = data[first : first + size], data[second : second + size]
    return data[:first] + b + data[first + size : second] + a + data[second + size :]


def _in_headers(mutate: Mutation) -> Mutation:
    """Mutate where structures are rather than values: the first kilobytes, or the directory at a zip's end."""

    def mutation(data: bytes, choose: random.Random) -> bytes:
        size = min(len(data) // 2, 6000)
        if choose.random() < 0.5 and data[:2] == b"PK":
            return data[:-size] + mutate(data[-size:], choose)
        return mutate(data[:size], choose) + data[size:]

    return mutation


_MUTATIONS = (_flip, _overwrite, _cut, _leave_out, _insert, _swap)
