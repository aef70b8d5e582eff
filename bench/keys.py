"""Which keys operations meet: all alike, a few far more often than others, or the youngest most."""

from __future__ import annotations

import random
from array import array
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, Literal, TypeAlias, get_args

Distribution: TypeAlias = Literal["uniform", "zipfian", "latest"]
DISTRIBUTIONS: Final[tuple[str, ...]] = get_args(Distribution)

_THETA: Final = 0.99
_ZETA: Final = 26.46902820178302
"""Sum of r ** -0.99 over the ten thousand million ranks that YCSB draws from, whatever the number of keys."""
_RANKS: Final = 100_000
"""Ranks with a probability of their own. Each of the others has less than one in two million: they are even."""


def make_keys(count: int, size: int) -> list[bytes]:
    """``count`` different keys of ``size`` bytes. Raises ValueError if there are not so many."""
    if len(str(count - 1)) > size:
        raise ValueError(f"there are no {count} decimal keys of {size} bytes")
    return [make_key(i, size) for i in range(count)]


def make_key(number: int, size: int) -> bytes:
    return str(number).zfill(size).encode()


def zipfian(count: int) -> array[float]:
    """Of each of ``count`` keys: the probability of it and all before it.

    YCSB's scrambled zipfian distribution with theta 0.99: ranks of a zipfian distribution over a huge set fall on keys
    by a hash, so that popular keys lie anywhere and the most popular one gets about 4% of the operations. Every process
    gets the same popular keys. Source: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010, and
    ScrambledZipfianGenerator of its sources.
    """
    hashed = random.Random(0)
    weights = [rank**-_THETA / _ZETA for rank in range(1, _RANKS + 1)]
    each = (1 - sum(weights)) / count
    shares = [each] * count
    for weight in weights:
        shares[int(hashed.random() * count)] += weight
    return array("d", accumulate(shares))


def _ages(count: int) -> array[float]:
    """Cumulated weights of the youngest of ``count`` keys, the one before it, and so on: zipfian, theta 0.99."""
    return array("d", accumulate(age**-_THETA for age in range(1, count + 1)))


def chooser(distribution: Distribution, keys: Sequence[bytes]) -> Callable[[Callable[[], float]], Callable[[], bytes]]:
    """A function that makes functions which choose from ``keys``, given one that draws from [0, 1).

    What it takes to prepare is shared. ``latest`` takes the keys that are there at that time, the last being the
    youngest (YCSB's SkewedLatestGenerator); the others those that are there now.
    """
    count = len(keys)
    if distribution == "uniform":
        return lambda draw: lambda: keys[int(draw() * count)]
    if distribution == "zipfian":
        shares = zipfian(count)
        last = count - 1
        # Sums of rounded numbers may end below 1.
        return lambda draw: lambda: keys[min(bisect(shares, draw()), last)]
    ages = _ages(count)
    total = ages[-1]
    return lambda draw: lambda: keys[-1 - min(bisect(ages, draw() * total), count - 1)]
