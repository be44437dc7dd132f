"""Standings from logs written down as values, over toy courses of two to four days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from tinyllm.grader import attempts, catalog, standing
from tinyllm.grader.clone import Clone
from tinyllm.grader.files import content_hash, short_hash
from tinyllm.grader.standing import Looked, Status

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
A, B, C = "a" * 12, "b" * 12, "c" * 12
_ids = count()


def toy_course(root, days=(("1.1", 2), ("1.2", 2), ("2.1", 1)), modules=None, builds_on=None):
    """A course with (id, number of tasks) days; day 1.2 has week1/day1_2.py unless told otherwise."""
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "course.toml").write_text('title = "Toy"\n[weeks]\n1 = "First"\n2 = "Second"\n')
    for day, tasks in days:
        name = f"day{day.replace('.', '_')}"
        folder = root / "checkpoints" / name
        folder.mkdir()
        own = (modules or {}).get(day, [f"week{day[0]}/{name}.py"])
        lines = [
            f'id = "{day}"',
            f'title = "Title of {day}"',
            'summary = "s"',
            f"modules = {own!r}",
            f"builds_on = {(builds_on or {}).get(day, [])!r}",
        ]
        for task in range(1, tasks + 1):
            lines += [
                "[[tasks]]",
                f"id = {task}",
                f'title = "task {task} of {day}"',
                'goal = "g"',
                "checks = 3",
                f'symbols = ["{own[0]}::f{task}"]',
                'hints = ["h"]',
            ]
        (folder / "checkpoint.toml").write_text("\n".join(lines))
    return catalog.load(Clone(root))


@pytest.fixture
def course(tmp_path):
    return toy_course(tmp_path)


def at(minutes):
    return START + timedelta(minutes=minutes)


def event(kind=attempts.Event, minutes=0.0, day="1.1", **fields):
    names = {attempts.Hint: "hint", attempts.Diff: "diff", attempts.Snapshot: "snapshot"}
    name = names.get(kind, "read")
    return kind(id=f"e{next(_ids)}", at=at(minutes), kind=name, day=day, data={}, **fields)


def attempt(minutes, outcomes, day="1.1", files=A, **changes):
    """An attempt at `day`; outcomes is one a task, "+" for passed and "-" for failed, or by task number."""
    words = {"+": "passed", "-": "failed", "o": "not started"}
    if not isinstance(outcomes, dict):
        outcomes = dict(enumerate(outcomes, 1))
    outcomes = {n: words.get(o, o) for n, o in outcomes.items()}
    if not isinstance(files, dict):
        files = {f"exercises/week{day[0]}/day{day.replace('.', '_')}.py": files}
    seen = set(outcomes.values())
    if seen == {"passed"}:
        verdict = "passed"
    elif seen <= {"passed", "not run here"}:
        verdict = "partial"
    else:
        verdict = "not passed"
    values = {
        "id": f"a{next(_ids)}",
        "at": at(minutes),
        "kind": "attempt",
        "day": day,
        "data": {},
        "solution": "exercises",
        "borrowed": (),
        "only_task": None,
        "verdict": verdict,
        "tasks": {
            n: attempts.TaskTally(o, {"passed": 3, "failed": 1}.get(o, 0), 3) for n, o in outcomes.items()
        },
        "seconds": 1.0,
        "files": files,
        "regression": False,
    }
    return attempts.Attempt(**{**values, **changes})


def now(course, **digests):
    """The hashes of the exercises as they are: A everywhere but where told, by module name."""
    modules = [m for d in course.days for m in d.modules]
    return {f"exercises/{m}": digests.get(m.split("/")[1].removesuffix(".py"), A) for m in modules}


def stand(course, events, day="1.1", **digests):
    return next(s for s in standing.standings(course, events, now(course, **digests)) if s.day == day)


# --- status


def test_nothing_in_the_log(course):
    days = standing.standings(course, [], now(course))
    assert [(s.day, s.title, s.week) for s in days] == [
        ("1.1", "Title of 1.1", 1),
        ("1.2", "Title of 1.2", 1),
        ("2.1", "Title of 2.1", 2),
    ]
    for s in days:
        assert s.status is Status.NOT_STARTED
        assert not s.finished
        assert (s.attempts, s.seconds, s.hints, s.looked, s.passed) == (0, 0.0, 0, Looked.NO, None)
        assert [(t.outcome, t.passed_checks, t.expected_checks) for t in s.tasks] == [("", 0, 3)] * len(
            s.tasks
        )


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ("oo", Status.NOT_STARTED),
        (["not started", "blocked"], Status.NOT_STARTED),
        ("-o", Status.IN_PROGRESS),
        ("+o", Status.IN_PROGRESS),
        (["crashed", "timed out"], Status.IN_PROGRESS),
        (["passed", "not run here"], Status.PARTIAL),
        ("++", Status.PASSED),
    ],
    ids=str,
)
def test_the_status_after_one_grading(course, outcomes, status):
    s = stand(course, [attempt(0, outcomes)])
    assert s.status is status
    assert s.attempts == 1
    assert s.finished == (status is Status.PASSED)


def test_what_passed_is_on_record(course):
    snapshot = event(attempts.Snapshot, 11, commit="c0ffee", attempt="x")
    s = stand(course, [attempt(0, "+-", files=B), attempt(10, "++", id="x"), snapshot])
    assert s.passed == standing.Pass(at=at(10), files=A, snapshot="c0ffee", borrowed=())
    assert s.first_passed_at == at(10)
    assert s.edited == ()
    assert s.attempts == 2


def test_a_day_edited_since_it_passed_says_so(course):
    s = stand(course, [attempt(0, "++")], day1_1=B)
    assert s.status is Status.EDITED
    assert s.finished
    assert s.edited == ("week1/day1_1.py",)
    assert s.passed.files == A


def test_a_deleted_module_is_an_edit(course):
    days = standing.standings(course, [attempt(0, "++")], {})
    assert days[0].status is Status.EDITED


def test_a_day_that_fails_after_it_passed_is_broken(course):
    s = stand(course, [attempt(0, "++"), attempt(10, "+-", files=B)], day1_1=B)
    assert s.status is Status.BROKEN
    assert not s.finished
    assert (s.tasks_passed, s.tasks_passed_ever) == (1, 2)
    assert s.passed.at == at(0)


def test_a_broken_day_that_is_edited_again_stays_broken_until_graded(course):
    log = [attempt(0, "++"), attempt(10, "+-", files=B)]
    assert stand(course, log, day1_1=C).status is Status.BROKEN
    assert stand(course, [*log, attempt(20, "++", files=C)], day1_1=C).status is Status.PASSED


def test_bringing_back_the_files_that_passed_mends_the_day(course):
    log = [attempt(0, "++"), attempt(10, "+-", files=B)]
    s = stand(course, log, day1_1=A)
    assert s.status is Status.PASSED
    assert s.tasks_passed == 2


def test_a_regression_on_unchanged_files_breaks_the_day(course):
    s = stand(course, [attempt(0, "++"), attempt(10, "-+", regression=True)])
    assert s.status is Status.BROKEN
    assert s.attempts == 1  # nobody asked for the second


def test_the_pass_that_stands_is_the_first_on_its_files(course):
    log = [attempt(0, "++"), attempt(10, "++", files=B), attempt(20, "++", files=B)]
    s = stand(course, log, day1_1=B)
    assert (s.passed.at, s.passed.files, s.first_passed_at) == (at(10), B, at(0))
    s = stand(course, log, day1_1=A)
    assert (s.status, s.passed.at, s.passed.files) == (Status.PASSED, at(0), A)
    s = stand(course, log, day1_1=C)
    assert (s.status, s.passed.at, s.passed.files) == (Status.EDITED, at(10), B)


def test_a_snapshot_of_another_pass_on_the_same_files_will_do(course):
    log = [
        attempt(0, "++"),
        attempt(5, "++", id="y"),
        event(attempts.Snapshot, 6, commit="c0ffee", attempt="y"),
    ]
    s = stand(course, log)
    assert (s.passed.at, s.passed.snapshot) == (at(0), "c0ffee")


def test_what_could_not_run_here_breaks_nothing(course):
    partial = attempt(10, ["passed", "not run here"])
    assert stand(course, [attempt(0, "++"), partial]).status is Status.PASSED
    s = stand(course, [attempt(0, "+-", files=B), partial])
    assert s.status is Status.IN_PROGRESS  # task 2 is known to fail
    assert s.tasks[1].outcome == "failed"


def test_an_unfinished_earlier_day_breaks_nothing(course):
    log = [attempt(0, "++", borrowed=("1.0",)), attempt(10, ["blocked", "blocked"])]
    assert stand(course, log).status is Status.PASSED


def test_partial_lasts_until_something_fails(course):
    log = [attempt(0, ["passed", "not run here"])]
    s = stand(course, log)
    assert (s.status, s.tasks_passed, s.tasks[1].outcome) == (Status.PARTIAL, 1, "not run here")
    log.append(attempt(5, {1: "failed"}, files=B, only_task=1))
    assert stand(course, log, day1_1=B).status is Status.IN_PROGRESS


@pytest.mark.parametrize(
    "changes",
    [{"solution": "reference"}, {"borrowed": ("1.1",)}, {"verdict": "environment"}],
    ids=str,
)
def test_attempts_that_do_not_judge_the_learners_own_code_do_not_count(course, changes):
    s = stand(course, [attempt(0, "++", **changes)])
    assert (s.status, s.attempts, s.tasks_passed_ever) == (Status.NOT_STARTED, 0, 0)
    s = stand(course, [attempt(0, "++"), attempt(10, "--", **changes)])
    assert (s.status, s.attempts) == (Status.PASSED, 1)


def test_an_interrupted_grading_keeps_what_it_found(course):
    s = stand(course, [attempt(0, ["passed", "not reached"], verdict="interrupted")])
    assert (s.status, s.tasks_passed, s.attempts) == (Status.IN_PROGRESS, 1, 1)
    assert s.last_graded is None


def test_borrowing_another_day_is_noted_until_it_passes_without(course):
    log = [attempt(0, "++", borrowed=("1.0",))]
    assert stand(course, log).passed.borrowed == ("1.0",)
    log.append(attempt(10, "++"))
    s = stand(course, log)
    assert (s.passed.borrowed, s.passed.at, s.first_passed_at) == ((), at(10), at(0))


# --- tasks


def test_a_task_passes_alone(course):
    s = stand(course, [attempt(0, {2: "passed"}, only_task=2)])
    assert [t.passed for t in s.tasks] == [False, True]
    assert s.status is Status.IN_PROGRESS
    assert s.last_graded is None


def test_only_the_task_asked_for_counts(course):
    s = stand(course, [attempt(0, "++", only_task=2)])
    assert [t.passed for t in s.tasks] == [False, True]


def test_tasks_passed_one_by_one_on_the_same_files_pass_the_day(course):
    log = [attempt(0, {1: "passed"}, only_task=1), attempt(5, {2: "passed"}, only_task=2)]
    s = stand(course, log)
    assert (s.status, s.passed.at) == (Status.PASSED, at(5))


def test_tasks_passed_one_by_one_with_an_edit_between_do_not(course):
    log = [attempt(0, {1: "passed"}, only_task=1), attempt(5, {2: "passed"}, files=B, only_task=2)]
    s = stand(course, log, day1_1=B)
    assert (s.status, s.tasks_passed) == (Status.IN_PROGRESS, 2)


def test_a_task_that_failed_in_between_must_pass_again(course):
    log = [
        attempt(0, {1: "passed"}, only_task=1),
        attempt(1, {1: "failed"}, only_task=1),
        attempt(2, {2: "passed"}, only_task=2),
    ]
    assert stand(course, log).status is Status.IN_PROGRESS


def test_a_task_that_fails_alone_breaks_the_day(course):
    log = [attempt(0, "++"), attempt(5, {2: "failed"}, files=B, only_task=2)]
    assert stand(course, log, day1_1=B).status is Status.BROKEN


def test_a_task_that_the_course_gained_leaves_the_day_unfinished(course):
    s = stand(course, [attempt(0, {1: "passed"})])
    assert (s.status, s.tasks_passed, len(s.tasks)) == (Status.IN_PROGRESS, 1, 2)


def test_a_module_that_the_course_gained_is_an_edit(tmp_path):
    course = toy_course(tmp_path, days=[("1.1", 1)], modules={"1.1": ["week1/day1_1.py", "week1/new.py"]})
    s = stand(course, [attempt(0, "+")])
    assert (s.status, s.edited) == (Status.EDITED, ("week1/new.py",))


def test_the_hash_of_several_modules(tmp_path):
    course = toy_course(tmp_path, days=[("1.1", 1)], modules={"1.1": ["week1/a.py", "week1/b.py"]})
    s = stand(course, [attempt(0, "+", files={"exercises/week1/a.py": A, "exercises/week1/b.py": B})], b=B)
    assert s.status is Status.PASSED
    assert s.passed.files == short_hash(f"{A}  week1/a.py\n{B}  week1/b.py\n".encode())


# --- hints and looks


def test_hints_are_counted_by_task_once_each_and_in_all(course):
    log = [
        event(attempts.Hint, i, task=t, hint=h) for i, (t, h) in enumerate([(1, 1), (1, 2), (1, 1), (2, 1)])
    ]
    s = stand(course, log)
    assert [(t.hints, t.hints_shown) for t in s.tasks] == [(2, 3), (1, 1)]
    assert (s.hints, s.hints_shown) == (3, 4)
    assert s.status is Status.NOT_STARTED


@pytest.mark.parametrize(
    ("looks", "looked"),
    [([], Looked.NO), ([5], Looked.BEFORE), ([15], Looked.AFTER), ([15, 5], Looked.BEFORE)],
    ids=str,
)
def test_looking_at_the_reference(course, looks, looked):
    log = [attempt(10, "++"), *(event(attempts.Diff, m, task=None) for m in looks)]
    s = stand(course, log)
    assert s.looked is looked
    assert s.looked_at == (at(min(looks)) if looks else None)


def test_looking_at_the_reference_of_a_day_that_never_passed(course):
    assert stand(course, [event(attempts.Diff, 0, task=1)]).looked is Looked.BEFORE


# --- time


def test_a_gap_goes_to_the_day_of_the_event_that_ends_it():
    log = [event(minutes=m, day=d) for m, d in [(0, "1.1"), (10, "1.1"), (15, "1.2"), (35, "1.1")]]
    assert standing.time_spent(log) == {"1.1": 30 * 60, "1.2": 5 * 60}
    assert standing.time_spent(reversed(log)) == {"1.1": 30 * 60, "1.2": 5 * 60}


def test_gaps_over_thirty_minutes_are_nobodys():
    log = [event(minutes=m) for m in (0, 30, 60.01, 61.01)]
    assert standing.time_spent(log) == {"1.1": pytest.approx(31 * 60)}


def test_regressions_take_no_time_and_split_no_gap():
    log = [
        attempt(0, "++", day="1.2"),
        attempt(9, "++", day="1.1", regression=True),
        attempt(10, "++", day="1.2"),
        event(minutes=11, day=""),
    ]
    assert standing.time_spent(log) == {"1.2": 600}


def test_one_event_has_no_time_yet():
    assert standing.time_spent([event()]) == {}


def test_time_reaches_the_day(course):
    assert stand(course, [event(minutes=0), attempt(12, "--")]).seconds == 720


# --- the order of events


def test_the_log_of_two_machines_counts_by_time(course):
    later, earlier = attempt(20, "++", files=B), attempt(10, "+-")
    assert stand(course, [later, earlier], day1_1=B).status is Status.PASSED


# --- what is next, and what to grade again


def test_the_next_unfinished_day(course):
    def following(*events, **digests):
        day = standing.next_unfinished(course, standing.standings(course, events, now(course, **digests)))
        return day and day.id

    first, second, third = attempt(0, "++"), attempt(1, "++", "1.2"), attempt(2, "+", "2.1")
    partial = attempt(1, ["passed", "not run here"], "1.2")
    assert following() == "1.1"
    assert following(first) == "1.2"
    assert following(first, third) == "1.2"
    assert following(first, day1_1=B) == "1.2"  # edited since: it did pass
    assert following(first, second, attempt(3, "+-"), third) == "1.1"  # broken
    assert following(first, partial) == "2.1"
    assert following(first, partial, third) == "1.2"
    assert following(first, second, third) is None


def changed(course, events, day, **digests):
    hashes = now(course, **digests)
    days = standing.standings(course, events, hashes)
    return [d.id for d in standing.changed_since_graded(course, days, hashes, course.day(day))]


def test_days_to_grade_again_are_earlier_ones_that_passed_and_changed(course):
    log = [attempt(0, "++"), attempt(1, "++", "1.2"), attempt(2, "+", "2.1")]
    assert changed(course, log, "2.1") == []
    assert changed(course, log, "2.1", day1_1=B, day2_1=B) == ["1.1"]
    assert changed(course, log, "2.1", day1_1=B, day1_2=B) == ["1.1", "1.2"]
    assert changed(course, log, "1.2", day1_2=B) == []
    assert changed(course, [attempt(0, "+-")], "2.1", day1_1=B) == []  # never passed


def test_a_day_graded_again_is_not_due_again(course):
    log = [attempt(0, "++"), attempt(5, "+-", files=B, regression=True)]
    assert changed(course, log, "2.1", day1_1=B) == []
    assert changed(course, log, "2.1", day1_1=C) == ["1.1"]
    assert changed(course, [*log, attempt(9, {1: "passed"}, files=C, only_task=1)], "2.1", day1_1=C) == [
        "1.1"
    ]


def test_a_day_that_passed_task_by_task_is_graded_again_when_edited(course):
    log = [attempt(0, {1: "passed"}, only_task=1), attempt(5, {2: "passed"}, only_task=2)]
    assert changed(course, log, "2.1") == []
    assert changed(course, log, "2.1", day1_1=B) == ["1.1"]


def test_a_day_is_graded_again_when_its_foundations_changed(tmp_path):
    course = toy_course(
        tmp_path,
        days=[("1.1", 1), ("1.2", 1), ("1.3", 1), ("1.4", 1)],
        builds_on={"1.2": ["1.1"], "1.3": ["1.2"], "1.4": ["1.3", "1.1"]},
    )
    hashes = now(course)
    third = course.day("1.3")
    upstream = standing.upstream_files(course, third, hashes)
    assert upstream == {"exercises/week1/day1_1.py": A, "exercises/week1/day1_2.py": A}
    files = {**upstream, "exercises/week1/day1_3.py": A}
    log = [attempt(0, "+", "1.3", files=files)]
    assert changed(course, log, "1.4") == []
    assert changed(course, log, "1.4", day1_1=B) == ["1.3"]
    assert stand(course, log, "1.3", day1_1=B).status is Status.PASSED  # its own files are what passed
    assert standing.upstream_files(course, third, hashes, borrowed=["1.1"]) == {
        "exercises/week1/day1_2.py": A
    }


# --- retired days


def test_days_that_left_the_course_are_kept(course):
    log = [
        attempt(0, "++", "1.10", files=A),
        attempt(1, "+-", "1.9", files=A),
        event(attempts.Diff, 2, day="1.9", task=1),
        event(attempts.Snapshot, 3, day="1.10", commit="c0ffee", attempt="none"),
        event(minutes=4, day="old one"),
        event(minutes=5, day=""),
        attempt(6, {1: "passed"}, "0.1", only_task=1),
        event(minutes=7, day="9" * 5000),
    ]
    days = [s for s in standing.standings(course, log, now(course)) if s.retired]
    assert [s.day for s in days[:4]] == ["0.1", "1.9", "1.10", "9" * 5000]
    assert days[4].day == "old one"
    by_day = {s.day: s for s in days}
    tenth, ninth = by_day["1.10"], by_day["1.9"]
    assert (tenth.status, tenth.passed.at, tenth.passed.files) == (Status.PASSED, at(0), "")
    assert (ninth.status, ninth.tasks_passed, len(ninth.tasks)) == (Status.IN_PROGRESS, 1, 2)
    assert ninth.looked is Looked.BEFORE
    assert by_day["0.1"].tasks == ()
    assert [s.day for s in standing.standings(course, log, now(course)) if not s.retired] == [
        "1.1",
        "1.2",
        "2.1",
    ]


# --- files


def test_the_hashes_of_the_exercises(tmp_path):
    course = toy_course(tmp_path)
    module = tmp_path / "exercises" / "week1" / "day1_1.py"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"x = 1\n")
    assert standing.exercise_hashes(Clone(tmp_path), course) == {
        "exercises/week1/day1_1.py": content_hash(module),
        "exercises/week1/day1_2.py": "missing",
        "exercises/week2/day2_1.py": "missing",
    }
