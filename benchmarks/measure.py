"""Timing: repeated, interleaved with the floor, told as medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

Action = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Result:
    """One row of the table. `ratio` is ours to the floor; `aim` says which side of which number is good."""

    name: str
    backend: str
    ours: float
    floor: float
    unit: str
    ratio: float
    aim: str
    met: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


async def seconds(action: Action) -> float:
    begun = time.perf_counter()
    await action()
    return time.perf_counter() - begun


async def side_by_side(ours: Action, floor: Action, rounds: int, warm: int = 3) -> tuple[float, float]:
    """Median seconds of both, taken in turns so that noise of the machine meets both."""
    for _ in range(warm):
        await ours()
        await floor()
    pairs = [(await seconds(ours), await seconds(floor)) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def at_most(name: str, backend: str, ours_s: float, floor_s: float, limit: float) -> Result:
    """A duration that should be at most `limit` times the floor's."""
    ratio = ours_s / floor_s
    return Result(name, backend, ours_s * 1000, floor_s * 1000, "ms", ratio, f"≤ {limit:g} ×", ratio <= limit)


def speed(name: str, backend: str, ours_s: float, floor_s: float, limit: float) -> Result:
    """A speed that should be at least `limit` times the floor's; the ratio is of speeds."""
    ratio = floor_s / ours_s
    return Result(name, backend, ours_s * 1000, floor_s * 1000, "ms", ratio, f"≥ {limit:g} ×", ratio >= limit)
