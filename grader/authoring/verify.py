"""Proof that a day's tests see what they are for, by grading right, wrong and cheating solutions.

Each statement is a Claim: a solution made from the reference, and what grading it must find. The grader that
grades here is the one that learners run.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .. import edits, runner
from ..catalog import Course, Day, Symbol, Task
from ..clone import Clone
from ..errors import SpecError
from ..report import CheckResult, DayReport, Outcome, Verdict
from . import mutants, naming, stubs

REFERENCE_RATIO = 0.3  # of its tolerance is what the reference may use
KILLING_RATIO = 10.0  # tolerances by which a misconception must be off

PARTS = 10  # into which the wrong solutions are dealt: `ci` verifies one of them

# Outcomes that say the graded code is wrong. A refused API or a fault of the course says something else.
WRONG = (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY)


class Kind(Enum):
    """What a claim is about."""

    REFERENCE = "reference"
    STUB = "stub"
    IN_ORDER = "in order"
    MISCONCEPTION = "misconception"
    CHEAT = "cheat"
    TAKEN_AWAY = "taken away"


WRONG_CODE = (Kind.MISCONCEPTION, Kind.CHEAT, Kind.TAKEN_AWAY)


@dataclass(frozen=True)
class Finding:
    """What came of a claim. `problem` is a sentence, empty when the claim holds."""

    problem: str = ""
    ratio: float | None = None  # the decisive error / tolerance; inf for an exact comparison
    check: str = ""  # the check that decided

    @property
    def told(self) -> str:
        """ "x7.2e+04, test_softmax.py::test_rows[float32]", or the problem."""
        by = "" if self.ratio is None else "exact" if math.isinf(self.ratio) else f"x{self.ratio:.3g}"
        return self.problem or ", ".join(filter(None, [by, self.check])) or "holds"


@dataclass(frozen=True)
class Claim:
    """Grading the reference with `changed` modules in place of its own finds what `judge` asks for."""

    kind: Kind
    name: str  # "task 3, misconception 'no-scale'": begins the sentence about it
    changed: dict[str, str]  # module -> source
    judge: Callable[[DayReport], Finding]
    only_task: int | None = None
    enough: Callable[[CheckResult], bool] = lambda check: False  # this check settles it: grade no further
    unmade: str = ""  # why there is nothing to grade: the claim does not hold
    mistake: str = ""  # the misconception's id


@dataclass(frozen=True)
class Proof:
    """A day's claims with what came of them, in the order of the claims."""

    day: Day
    results: tuple[tuple[Claim, Finding], ...]
    seconds: float
    naming: naming.Naming  # what a learner would be told of the misconceptions

    @property
    def problems(self) -> list[str]:
        failed = [f"{self.day.name}, {claim.name}: {f.problem}" for claim, f in self.results if f.problem]
        return failed + list(self.naming.wrong)

    @property
    def passed(self) -> int:
        return sum(not finding.problem for _, finding in self.results)

    def of(self, kind: Kind) -> list[Finding]:
        return [finding for claim, finding in self.results if claim.kind == kind]


def verify_day(
    clone: Clone,
    course: Course,
    day: Day,
    *,
    jobs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    part: int | None = None,
) -> Proof:
    """Grade every claim of a day, or only a part of the wrong solutions, `jobs` at a time.

    `progress(done, total)` is told after each.
    """
    began = time.monotonic()
    made = list(claims(clone, course, day))
    if part is not None:
        made = one_part(made, part)
    findings: dict[int, Finding] = {}
    trials: list[naming.Trial] = []
    with tempfile.TemporaryDirectory(prefix="tinyllm-verify-") as folder:
        pool = ThreadPoolExecutor(jobs)
        try:
            waiting = {
                pool.submit(_settle, clone, course, day, claim, Path(folder) / str(number), trials): number
                for number, claim in enumerate(made)
            }
            for done in as_completed(waiting):
                error = done.exception()
                told = f"the grader itself raised {type(error).__name__}: {error}"
                findings[waiting[done]] = Finding(told) if error else done.result()
                progress(len(findings), len(made))
        finally:
            pool.shutdown(cancel_futures=True)
        named = naming.name(clone, day, trials, jobs=jobs)
    results = tuple((claim, findings[number]) for number, claim in enumerate(made))
    return Proof(day, results, time.monotonic() - began, named)


def default_jobs() -> int:
    return os.cpu_count() or 1


def _settle(
    clone: Clone, course: Course, day: Day, claim: Claim, folder: Path, trials: list[naming.Trial]
) -> Finding:
    if claim.unmade:
        return Finding(claim.unmade)
    overlays = {}
    for module, source in claim.changed.items():
        overlays[module] = folder / module
        overlays[module].parent.mkdir(parents=True, exist_ok=True)
        overlays[module].write_text(source, encoding="utf-8")
    report = runner.grade(
        clone,
        course,
        day,
        solution="reference",
        overlays=overlays,
        only_task=claim.only_task,
        # The reference itself may take its time; a wrong solution that never ends may not.
        timeout=course.limits.check_seconds if overlays else None,
        enough=claim.enough,
        witness=folder / "witness.jsonl" if claim.mistake else None,
    )
    # A wrong number of checks is a problem too, but only the reference's: the others are judged by what ran.
    if report.verdict is Verdict.INTERRUPTED or not _checks(report):
        return Finding(f"it could not be graded: {report.problem}")
    if claim.mistake:
        trials.append(naming.Trial(claim.mistake, report.tasks[0], folder / "witness.jsonl"))
    return claim.judge(report)


# ---- the claims ----


def one_part(made: Sequence[Claim], part: int) -> list[Claim]:
    """All claims about right code; of those about wrong code every PARTS-th, from number `part` on."""
    wrong = [number for number, claim in enumerate(made) if claim.kind in WRONG_CODE]
    left_out = set(wrong) - set(wrong[part - 1 :: PARTS])
    return [claim for number, claim in enumerate(made) if number not in left_out]


def claims(clone: Clone, course: Course, day: Day) -> Iterator[Claim]:
    """What must hold of a day, in the order a reader would ask. Raises SpecError without its modules."""
    own = {m: stubs.stub(clone, course, m).decode() for m in day.modules}
    sources = {m: (clone.reference / m).read_text(encoding="utf-8") for m in day.modules}
    later, unmade = _later_stubs(clone, course, day)

    yield Claim(Kind.REFERENCE, "the reference", {}, judge_reference)
    yield Claim(Kind.STUB, "the stub", {**own, **later}, judge_stub)
    if later or unmade:
        name = "the reference with later days unfinished"
        yield Claim(Kind.IN_ORDER, name, later, judge_reference, unmade=unmade)
    for task in day.tasks:
        yield from _misconceptions(task, sources)
        yield from _cheats(task, sources)
    for symbol in dict.fromkeys(s for task in day.tasks for s in task.symbols if s.module.endswith(".py")):
        changed = {symbol.module: mutants.raising(sources[symbol.module], symbol)}
        name = f"{symbol.name} replaced by one that raises"
        yield Claim(Kind.TAKEN_AWAY, name, changed, judge_taken_away, enough=_is_wrong)


def _later_stubs(clone: Clone, course: Course, day: Day) -> tuple[dict[str, str], str]:
    """The stubs of modules that only later days have, and why there are none if they cannot be made."""
    finished = {m for d in (*course.before(day), day) for m in d.modules}
    modules = [m for d in course.days for m in d.modules if m not in finished]
    try:
        return {m: stubs.stub(clone, course, m).decode() for m in modules}, ""
    except SpecError as error:
        return {}, error.message


def _misconceptions(task: Task, sources: dict[str, str]) -> Iterator[Claim]:
    for mistake in task.misconceptions:
        changed, unmade = {}, ""
        try:
            changed[mistake.module] = edits.misconceived(sources[mistake.module], mistake)
        except SpecError as error:
            unmade = error.message
        except KeyError:
            unmade = f"{mistake.module} is not among the day's modules"
        name = f"task {task.id}, misconception '{mistake.id}'"
        # Every check is run, as after a learner's mistake, unless one hangs or ends the process.
        yield Claim(
            Kind.MISCONCEPTION, name, changed, judge_misconception, task.id, _is_fatal, unmade, mistake.id
        )


def _cheats(task: Task, sources: dict[str, str]) -> Iterator[Claim]:
    for symbol in task.symbols:
        if not symbol.module.endswith(".py") or symbol.name.endswith(".__init__"):
            continue  # a constructor gives no answer that could be a cheat
        for cheat in mutants.CHEATS:
            changed = {symbol.module: mutants.cheating(sources[symbol.module], symbol, cheat)}
            name = f"task {task.id}, cheat '{cheat.name}' for {symbol.name}"
            judge = _cheat_judge(symbol, cheat)
            yield Claim(Kind.CHEAT, name, changed, judge, task.id, _is_wrong)


def _cheat_judge(symbol: Symbol, cheat: mutants.Cheat) -> Callable[[DayReport], Finding]:
    return lambda report: judge_cheat(report, symbol, cheat)


# ---- what a grading must find ----


def judge_stub(report: DayReport) -> Finding:
    """Every check of every task stops at an unwritten part of this very day."""
    for check in _checks(report):
        said = check.failure.summary if check.failure else ""
        own = check.outcome is Outcome.NOT_STARTED
        if check.outcome is Outcome.BLOCKED and check.failure is not None:
            own = not check.failure.needs_day  # by another task of the same day
        if not own:
            because = f" ({said})" if said else ""
            return Finding(
                f"{check.id} comes out as '{check.outcome.value}'{because}, not as 'not started': "
                "make the check call a symbol of its task, and list that symbol.",
                check=check.id,
            )
    return Finding()


def judge_reference(report: DayReport) -> Finding:
    """Every promised check passes, well inside its tolerance."""
    for task in report.tasks:
        if len(task.checks) != task.expected:
            return Finding(
                f"task {task.id} promises checks = {task.expected}, and its tests hold {len(task.checks)}: "
                f"set checks = {len(task.checks)}."
            )
    for check in _checks(report):
        if check.outcome is not Outcome.PASSED:
            said = f": {check.failure.summary}" if check.failure else "."
            return Finding(f"{check.id} comes out as '{check.outcome.value}'{said}", check=check.id)
    if report.verdict is not Verdict.PASSED:
        return Finding(f"its verdict is '{report.verdict.value}', not 'passed': {report.problem}")
    worst = max(_checks(report), key=lambda check: check.ratio or 0.0)
    if (worst.ratio or 0.0) > REFERENCE_RATIO:
        return Finding(
            f"{worst.id} uses {worst.ratio:.2f} of its tolerance, and {REFERENCE_RATIO} is allowed: "
            "count the roundings of the computation again, or tame the input.",
            ratio=worst.ratio,
            check=worst.id,
        )
    return Finding(ratio=worst.ratio or 0.0, check=worst.id)


def judge_misconception(report: DayReport) -> Finding:
    """Some check of its task is off by KILLING_RATIO tolerances, or fails an exact comparison."""
    odd = _no_verdict(report)
    if odd:
        return odd
    wrong = [check for check in _checks(report) if _is_wrong(check)]
    if not wrong:
        return Finding(
            "it survives, every check of the task passes: add an input on which it gives another answer."
        )
    worst = max(wrong, key=_error)
    if _error(worst) < KILLING_RATIO:
        return Finding(
            f"the check that sees it best, {worst.id}, is off by {_error(worst):.1f} tolerances, and "
            f"{KILLING_RATIO:.0f} are needed: choose an input that sets it further apart.",
            ratio=_error(worst),
            check=worst.id,
        )
    return Finding(ratio=_error(worst), check=worst.id)


def judge_cheat(report: DayReport, symbol: Symbol, cheat: mutants.Cheat) -> Finding:
    odd = _no_verdict(report)
    if odd:
        return odd
    for check in _checks(report):
        if _is_wrong(check):
            return Finding(check=check.id)
    return Finding(f"it passes the task: add a check of {symbol.name} and {cheat.advice}.")


def judge_taken_away(report: DayReport) -> Finding:
    for check in _checks(report):
        if _is_wrong(check):
            return Finding(check=check.id)
    return Finding("no check of the day fails: add one that calls it, or take it off the task's symbols.")


def _checks(report: DayReport) -> list[CheckResult]:
    return [check for task in report.tasks for check in task.checks]


def _is_wrong(check: CheckResult) -> bool:
    return check.outcome in WRONG


def _is_fatal(check: CheckResult) -> bool:
    return _is_wrong(check) and check.outcome is not Outcome.FAILED


def _error(check: CheckResult) -> float:
    """By how many tolerances a failed check was off; inf when it was no matter of tolerance."""
    if check.failure is None or check.failure.ratio is None:
        return math.inf
    return check.failure.ratio


def _no_verdict(report: DayReport) -> Finding | None:
    """A check that says nothing about the graded code proves nothing about the tests."""
    for check in _checks(report):
        if check.outcome in (Outcome.COURSE_FAULT, Outcome.REFUSED):
            said = f": {check.failure.summary}" if check.failure else "."
            return Finding(f"{check.id} comes out as '{check.outcome.value}'{said}", check=check.id)
    return None


# ---- in words ----


def table(proofs: Sequence[Proof]) -> str:
    """One line a day: checks, the reference's worst ratio, what was killed and how narrowly."""
    rows = [("day", "checks", "reference", "misconceptions", "named", "cheats", "taken away", "seconds")]
    for proof in proofs:
        reference = proof.of(Kind.REFERENCE)[0]
        killed = [f for f in proof.of(Kind.MISCONCEPTION) if not f.problem]
        narrowest = min((f.ratio for f in killed if f.ratio is not None), default=math.inf)
        narrowly = "exact" if math.isinf(narrowest) else f"x{narrowest:.3g}"
        rows.append(
            (
                proof.day.name,
                str(proof.day.checks),
                "fails" if reference.ratio is None else f"{reference.ratio:.2f}",
                f"{_killed(proof, Kind.MISCONCEPTION)}, least {narrowly}"
                if killed
                else _killed(proof, Kind.MISCONCEPTION),
                f"{proof.naming.named}/{proof.naming.total}",
                _killed(proof, Kind.CHEAT),
                _killed(proof, Kind.TAKEN_AWAY),
                f"{proof.seconds:.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _killed(proof: Proof, kind: Kind) -> str:
    findings = proof.of(kind)
    return f"{sum(not f.problem for f in findings)}/{len(findings)}"


def naming_of(proofs: Sequence[Proof]) -> naming.Naming:
    """What a learner would be told of the misconceptions, over all days."""
    return sum((proof.naming for proof in proofs), naming.Naming())


def closing(proofs: Sequence[Proof]) -> str:
    """ "212 passed, 0 failed": claims, over all days."""
    passed = sum(proof.passed for proof in proofs)
    failed = sum(len(proof.results) for proof in proofs) - passed
    return f"{passed} passed, {failed} failed"
