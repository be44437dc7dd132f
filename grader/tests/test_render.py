"""What a failure's lines say, in few words."""

from __future__ import annotations

from tinyllm.grader import render
from tinyllm.grader.frames import describe
from tinyllm.grader.report import ArrayNote


def test_what_is_said_of_a_line_s_variables_stays_short() -> None:
    arrays = [ArrayNote(f"array_{i}", shape="(2, 3, 5)", dtype="float32") for i in range(7)]
    plain = [
        describe(name, value) for name, value in (("scale", 0.3535533905932738), ("L", 5), ("temp", 0.5))
    ]
    told = render._shapes([*arrays[:1], *plain]).replace(render.NO_BREAK, " ")
    assert told == "float32: array_0 (2, 3, 5); scale = 0.353553; L = 5; temp = 0.5"

    told = render._shapes([*arrays, *plain, ArrayNote("text", value=repr("x" * 30))])
    told = told.replace(render.NO_BREAK, " ")
    assert all(a.name in told for a in arrays)  # what is left out is plain, and counted
    assert told.endswith("; scale = 0.353553; L = 5; temp = 0.5; and 1 more")
