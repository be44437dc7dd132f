"""Figures as values: what `bench` measured, the bars it was held to, and how both are said.

Nothing here measures and nothing here needs MLX: the child makes these values, the parent prints them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ENOUGH = 0.8  # of the rounds must lie on one side of a bar
FEW_ROUNDS = 3  # with fewer, only a clear distance from the bar decides
CLEARLY = 1.5
TIMES = {"s": 1.0, "ms": 1e3, "us": 1e6}  # units of which less is better; of any other unit more is


class Verdict(StrEnum):
    MET = "met"
    MISSED = "missed"
    NOISY = "too noisy to judge"


def judge(ratios: Sequence[float], least: float) -> Verdict:
    """Whether ratios, one a round, keep a bar: the median does and so do four rounds in five, or neither."""
    if len(ratios) < FEW_ROUNDS:
        if min(ratios) >= CLEARLY * least:
            return Verdict.MET
        return Verdict.MISSED if max(ratios) * CLEARLY <= least else Verdict.NOISY
    met = sum(r >= least for r in ratios) / len(ratios)
    if statistics.median(ratios) >= least:
        return Verdict.MET if met >= ENOUGH else Verdict.NOISY
    return Verdict.MISSED if 1 - met >= ENOUGH else Verdict.NOISY


@dataclass(frozen=True)
class Bar:
    """What was demanded, in words, and how that went."""

    says: str  # "yours at least 0.5 times as fast as mlx-lm"
    verdict: Verdict

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Bar:
        return cls(data["says"], Verdict(data["verdict"]))


@dataclass(frozen=True)
class Count:
    """A figure that is counted, not timed. `bar` is None where it is only told."""

    title: str
    value: float
    unit: str
    bar: Bar | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Count:
        return cls(**{**data, "bar": Bar.read(data["bar"]) if data["bar"] else None})

    @property
    def bars(self) -> tuple[Bar, ...]:
        return (self.bar,) if self.bar else ()


@dataclass(frozen=True)
class Lane:
    """One contestant of a race: a figure for each round that it took part in."""

    name: str
    figures: tuple[float, ...]
    remark: str = ""  # why it took part in fewer rounds, or did less

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass(frozen=True)
class Race:
    """What several contestants took for the same thing, in turns.

    `agreement` says how far their results were compared; `differs`, when it is not empty, why the times mean
    nothing, and `differing` whose result it was.
    """

    title: str
    unit: str
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...] = ()
    agreement: str = ""
    differs: str = ""
    differing: str = ""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Race:
        lanes = lanes_of(data["lanes"])
        return cls(**{**data, "lanes": lanes, "bars": tuple(Bar.read(b) for b in data["bars"])})

    def ratios(self, one: str, other: str) -> tuple[float, ...]:
        """How many times as fast `one` was as `other`, for each round that both took part in."""
        figures = {lane.name: lane.figures for lane in self.lanes}
        pairs = zip(figures[one], figures[other], strict=False)
        return tuple(b / a if self.unit in TIMES else a / b for a, b in pairs)


@dataclass(frozen=True)
class Limits:
    """What memory allows a decoding model, and how near each contestant comes."""

    weight_bytes: int  # that each token reads, as they are stored
    cache_bytes: float  # of the keys and values before it
    bandwidth: float  # bytes/s; 0 where caches may hold the weights, so that memory sets no limit
    how: str = ""  # the bandwidth was measured
    lanes: tuple[Lane, ...] = ()  # in percent of the limit

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Limits:
        return cls(**{**data, "lanes": lanes_of(data["lanes"])})

    @property
    def per_second(self) -> float:
        """Tokens/s that memory allows; 0 where it sets no limit."""
        return self.bandwidth / (self.weight_bytes + self.cache_bytes)


def lanes_of(data: Sequence[Mapping[str, Any]]) -> tuple[Lane, ...]:
    return tuple(Lane(x["name"], tuple(x["figures"]), x["remark"]) for x in data)


def figure(work: float, seconds: float, unit: str) -> float:
    """A turn's time as a figure of `unit`: the time itself, or work a second."""
    return seconds * TIMES[unit] if unit in TIMES else work / seconds


def number(value: float) -> str:
    """Three digits, or all of a whole number: "0.153", "31.4", "1,024", "2.1e+08"."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def spread(figures: Sequence[float]) -> str:
    """Median, least and most: "31.4 (30.1, 32.2)"; one figure alone as it is."""
    told = [number(_rounded(x)) for x in (statistics.median(figures), min(figures), max(figures))]
    return told[0] if len(figures) == 1 else f"{told[0]} ({told[1]}, {told[2]})"


def _rounded(value: float) -> float:
    """To three digits: a measured time has no more."""
    return float(f"{value:.3g}")


def size(count: float) -> str:
    """Bytes in words: "309 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
