"""Schedules as text and as pictures, and how `bench` tells them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

from tinyllm.grader import schedule_picture
from tinyllm.grader.clone import Clone
from tinyllm.grader.measuring import Bench
from tinyllm.grader.schedule_picture import Cell, SchedulePicture, excerpt, schedule_of, schedule_text
from tinyllm.grader.trees import Tree


def plan(
    step: int, decode: Mapping[int, int] | None = None, prefill: Mapping[int, tuple[int, int]] | None = None
) -> Any:
    """A plan: decode is slot -> id, prefill slot -> (id, tokens)."""
    return SimpleNamespace(
        step=step,
        decode=[SimpleNamespace(id=id, slot=slot) for slot, id in (decode or {}).items()],
        prefill=[SimpleNamespace(id=i, slot=s, tokens=(1,) * n) for s, (i, n) in (prefill or {}).items()],
    )


BEGINNING = [plan(0, prefill={0: (0, 4), 1: (1, 12)}), plan(1, {0: 0}, {1: (1, 3)})]


def two(yours: list[Any], reference: list[Any]) -> SchedulePicture:
    made = schedule_of("yours", yours, 2), schedule_of("<reference>", reference, 2)
    return SchedulePicture("a & b", made)


def test_a_schedule_as_text() -> None:
    told = schedule_text([*BEGINNING, plan(2, {1: 1})], 2)
    assert told == "step    0      1     2\nslot 0  P0:4   D0    .\nslot 1  P1:12  P1:3  D1"
    assert schedule_text([plan(0, {0: 7}, {0: (8, 2), 5: (9, 1)})], 1).endswith("slot 0  P8:2+D7")
    assert schedule_text([], 1) == "step\nslot 0"


def test_the_first_difference() -> None:
    same = two(BEGINNING, BEGINNING)
    assert (same.first_difference, same.differing) == (None, 0)
    assert excerpt(same).startswith("step    0")
    shorter = two(BEGINNING, BEGINNING[:1])
    assert (shorter.first_difference, shorter.differing) == (1, 1)
    other = two([*BEGINNING, plan(2), plan(3)], [*BEGINNING, plan(2, {0: 1}), plan(3)])
    assert (other.first_difference, other.differing) == (2, 1)
    told = excerpt(other)
    assert told.splitlines()[0] == "yours"
    assert told.splitlines()[1].split() == ["step", "1", "2", "3"]
    assert "<reference>" in told


def test_the_picture_tells_prefill_from_decode_without_colour() -> None:
    root = ElementTree.fromstring(schedule_picture.draw(two(BEGINNING, [BEGINNING[0], plan(1, {0: 0})])))
    cells = [g for g in root.iter() if g.tag.endswith("}g")]
    titles = {g[0].text: g for g in cells}
    chunk = titles["yours, step 0, slot 1: request 1, 12 prompt tokens"]
    decode = titles["<reference>, step 1, slot 0: request 0, decode"]
    hatched = [sum("hatch" in r.attrib.get("fill", "") for r in cell) for cell in (chunk, decode)]
    assert hatched == [1, 0]
    assert "+12" in "".join(chunk.itertext())
    said = "".join(root.itertext())
    assert "first difference: step 1" in said
    assert "a & b" in said


def test_steps_stand_under_each_other_and_inside() -> None:
    root = ElementTree.fromstring(schedule_picture.draw(two(BEGINNING, BEGINNING)))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    places: dict[str, set[float]] = {}
    for g in root.iter():
        if g.tag.endswith("}g") and g[0].text and ", step 1," in g[0].text:
            rect = g[1].attrib
            assert 0 < float(rect["x"]) < width - float(rect["width"])
            assert 0 < float(rect["y"]) < height - float(rect["height"])
            places.setdefault(g[0].text.partition(",")[0], set()).add(float(rect["x"]))
    assert places["yours"] == places["<reference>"]
    assert "the same in every step" in "".join(root.itertext())


def test_of_a_long_schedule_the_steps_around_the_difference_are_shown() -> None:
    long = [plan(n, {0: 0}) for n in range(200)]
    other = [*long[:150], plan(150, {1: 0}), *long[151:]]
    drawn = schedule_picture.draw(two(long, other))
    assert "first difference: step 150" in drawn
    assert "step 150, slot 1" in drawn
    assert "step 10, slot" not in drawn
    assert drawn.count("<title>yours, step") == schedule_picture.SHOWN


class Heard(list[tuple[str, Any]]):
    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        self.append((event, json.loads(json.dumps(data))))  # as it comes through the pipe


def test_bench_tells_schedules(tmp_path: Path) -> None:
    mine, theirs = Tree("exercises", tmp_path / "exercises"), Tree("reference", tmp_path / "reference")
    heard = Heard()
    plans = {"yours": BEGINNING, "reference": BEGINNING[:1]}
    assert Bench(Clone(tmp_path), mine, theirs, heard).schedules("t", plans, 2) == 1
    [(event, told)] = heard
    assert event == "schedules"
    picture = SchedulePicture.read(told)
    assert [s.name for s in picture.schedules] == ["yours", "reference"]
    assert picture.schedules[0].steps[1][1] == (Cell(1, 3),)
    assert json.loads(json.dumps(asdict(picture))) == told
    heard.clear()
    assert Bench(Clone(tmp_path), theirs, theirs, heard).schedules("t", plans, 2) == 0
    assert [s["name"] for s in heard[0][1]["schedules"]] == ["reference"]
