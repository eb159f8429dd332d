"""The project's own pseudo-random order, so that no release of numpy can change a run."""

import math
from operator import index

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1
_ROUNDS = 6


def is_whole(value: object) -> bool:
    """Return whether something is an integer; a truth value is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finaliser of every value (Steele, Lea, Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def hash_key(*key: int) -> int:
    """Return one 64-bit number that stands for a tuple of integers.

    >>> hash_key(1, 2) != hash_key(2, 1)
    True
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mix((state + _GOLDEN) ^ np.uint64(_whole(part) & _MASK))
    return int(state[0])


def _whole(part: int) -> int:
    try:
        return index(part)
    except TypeError as error:
        raise ValueError(f"a seed or epoch must be a whole number, got {part!r}") from error


def random_bits(n: int, *key: int) -> NDArray[np.uint64]:
    """Return `n` pseudo-random 64-bit numbers that depend on `key` and the place alone."""
    steps = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    return _mix(steps + np.uint64(hash_key(*key)))


def uniform(n: int, *key: int) -> NDArray[np.float64]:
    """Return `n` pseudo-random numbers in `[0, 1)`, of 53 bits each; see `random_bits`."""
    return np.asarray((random_bits(n, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of `0..n-1` that depends on `n` and `key` alone.

    The same numbers come back on every machine and in every release: runs resume across releases.

    Args:
        n: Length, at least 0.
        *key: Integers such as seed and epoch; another key gives an unrelated order.

    >>> permutation(8, 0, 0).tolist()
    [0, 7, 2, 5, 4, 6, 3, 1]
    """
    return np.argsort(random_bits(n, *key), kind="stable").astype(np.int64)


def shuffled_places(places: NDArray[np.int64], n: int, *key: int) -> NDArray[np.int64]:
    """Return where a permutation of `0..n-1` sends these places, without making it whole.

    Places are pairs of digits (x, y) on an a by b board of at least n squares, moved by Feistel
    rounds: each adds a hash of one digit to the other. Where that leads off the first n squares it
    is done again (Black and Rogaway, CT-RSA 2002). Memory is a few numbers per place.

    Args:
        places: int64, any shape, in `[0, n)`.
        n: Length of the permutation, at least 1.
        *key: Integers; another key gives an unrelated order.

    >>> shuffled_places(np.arange(6), 6, 0, 1).tolist()
    [4, 1, 0, 2, 5, 3]
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = [np.uint64(hash_key(*key, number)) for number in range(_ROUNDS)]
    moved = np.array(places, dtype=np.int64)
    astray = np.ones(moved.shape, dtype=bool)
    while astray.any():
        moved[astray] = _feistel(moved[astray].astype(np.uint64), a, b, rounds)
        astray = moved >= n
    return moved


def _feistel(
    places: NDArray[np.uint64], a: int, b: int, rounds: list[np.uint64]
) -> NDArray[np.int64]:
    y, x = np.divmod(places, np.uint64(a))
    for number, key in enumerate(rounds):
        if number % 2:
            y = (y + _mix(x * _GOLDEN + key) % np.uint64(b)) % np.uint64(b)
        else:
            x = (x + _mix(y * _GOLDEN + key) % np.uint64(a)) % np.uint64(a)
    return (y * np.uint64(a) + x).astype(np.int64)
