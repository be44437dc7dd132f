"""What a child printed is told apart by the marks between its checks, however the stream is read."""

from __future__ import annotations

import pytest

from tinyllm.grader.prints import KEPT_OUTPUT, MARK, Prints

STREAM = b"imports\n" + MARK + b"first\n" + MARK + MARK + b"third \0next\n"


@pytest.mark.parametrize("length", [1, 2, 5, len(MARK), 1000])
def test_each_check_has_its_own(length: int) -> None:
    prints = Prints()
    for start in range(0, len(STREAM), length):
        prints.add(STREAM[start : start + length])
    told = [prints.text()]
    for _ in range(3):
        prints.next()
        told.append(prints.text())
    assert told == ["imports\n", "first\n", "", "third \0next\n"]


def test_without_marks_the_next_part_is_what_comes_from_now_on() -> None:
    prints = Prints()
    prints.add(b"before")
    prints.next()
    assert prints.text() == ""
    prints.add(b"after" * KEPT_OUTPUT)
    assert prints.text().startswith("afterafter")
    assert "bytes left out" in prints.text()
    assert len(prints.text()) < 3 * KEPT_OUTPUT
