"""`python -m tinyllm.grader.authoring`: parses and prints; the work is done by the modules beside it."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import git

from .. import catalog, tracker
from ..catalog import Course, Day
from ..clone import Clone, find_clone
from ..errors import CourseError
from . import ci as ci_
from . import fresh_progress, guilt_sweep, rehearsal, spec_checks
from . import imports as imports_
from . import manifest as manifest_
from . import pictures as pictures_
from . import sanitize as sanitize_
from . import stubs as stubs_
from . import verify as verify_

SHOWN_SILENT = 12  # names of misconceptions that the search for likely mistakes does not find


class _Commands(click.Group):
    """Ends in a course error's own sentence and exit code instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CourseError as error:
            click.echo(error.message, err=True)
            if error.next_step:
                click.echo(error.next_step, err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Tools for writing a day of the course."""


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Only show what differs; exit code 1 if anything.")
def stubs(only_check: bool) -> None:
    """Generate exercises/ from reference/ and the specs, and the fresh tracker. Both are overwritten."""
    clone, course = _load()
    if only_check:
        _end(_check_stubs(clone, course))
        return
    fresh_progress.refuse_learners_clone(clone)
    changed = [f"exercises/{relative}" for relative in stubs_.write(clone, course)]
    if fresh_progress.write(clone, course):
        changed.append(clone.relative(tracker.tracker_path(clone)))
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} {'file' if len(changed) == 1 else 'files'} changed.")


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Only say whether it is of these files.")
def manifest(only_check: bool) -> None:
    """Write grader/upstream.sha256, the hashes that `tinyllm-grade --strict` compares with."""
    clone, _ = _load()
    if only_check:
        _end(_check_manifest(clone))
        return
    click.echo("written" if manifest_.write(clone) else "nothing to change")


@main.command()
@click.option(
    "--check", "only_check", is_flag=True, help="Only say which are not what the program shows now."
)
def pictures(only_check: bool) -> None:
    """Make the README's pictures anew, from real runs in a temporary clone."""
    clone = find_clone()
    if only_check:
        _end(_check_pictures(clone))
        return
    for path in pictures_.write(clone):
        click.echo(path)


@main.command()
def imports() -> None:
    """Check who imports whom, in every part of the clone."""
    _end(_check_imports(*_load()))


@main.command()
@click.argument("day", default="all")
def specs(day: str) -> None:
    """Check that a day's spec, lesson and tests belong together. DAY as in `tinyllm-grade`; default: all."""
    clone, course = _load()
    _end(_check_specs(clone, course, course.select(day)))


@main.command()
def cuda() -> None:
    """Compile every GPU kernel of reference/ for CUDA with NVRTC. No GPU is needed."""
    _end(_check_cuda(find_clone()))


_jobs = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=verify_.default_jobs,
    show_default="the number of processors",
    help="Gradings at a time.",
)


@main.command()
@click.argument("day", default="all")
@_jobs
@click.option("-v", "--verbose", is_flag=True, help="One line for each claim, with the check that decided.")
@click.option(
    "--part",
    type=click.IntRange(1, verify_.PARTS),
    help="Only every tenth of the wrong solutions, from number N on; `ci` takes another part at each commit.",
    metavar="N",
)
def verify(day: str, jobs: int, verbose: bool, part: int | None) -> None:
    """Prove that the tests of a day see mistakes. DAY as in `tinyllm-grade`; default: all.

    Grades the reference, the stub, every misconception, the cheats, and each symbol taken away.
    """
    clone, course = _load()
    proofs = _verify(clone, course, course.select(day), jobs, verbose=verbose, part=part)
    problems = _problems(proofs)
    click.echo(verify_.closing(proofs))
    _end(ci_.Result.of(problems))


@main.command()
@click.argument("day", default="all")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Only so many a day, drawn by --seed."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--pairs", type=click.IntRange(min=1), metavar="N", help="Instead: so many pairs a day.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Children at a time.")
@click.option("-v", "--verbose", is_flag=True, help="A line for each plant.")
def why(day: str, sample: int | None, seed: int, pairs: int | None, jobs: int, verbose: bool) -> None:
    """Prove that `tinyllm-grade why` names the right day. DAY as in `tinyllm-grade`; default: all.

    Plants every misconception of the days that a day builds on, one at a time; fails below 95 %.
    """
    clone, course = _load()
    _end(_prove_why(clone, course, course.select(day), sample, seed, pairs, jobs, verbose=verbose))


@main.command()
@click.option("--quick", is_flag=True, help="Only for this processor, and without ThreadSanitizer.")
def sanitize(quick: bool) -> None:
    """Run every kernel of reference/, and the thread pool, under sanitizers. Takes a C++ compiler."""
    _end(_sanitize(find_clone(), quick=quick))


@main.command()
@_jobs
def coverage(jobs: int) -> None:
    """The grader's own tests, and how much of the grader they run: a tenth of its lines may be missed."""
    with tempfile.TemporaryDirectory() as folder:
        result = ci_.measured_tests(find_clone().root, Path(folder), jobs)
    for failure in result.failures:
        click.echo(failure)
    _end(result)


@main.command()
@_jobs
def ci(jobs: int) -> None:
    """What must hold before a change is taken: style, imports, stubs, specs, sanitizers, tests, proofs."""
    clone, course = _load()
    with tempfile.TemporaryDirectory() as folder:
        steps = [
            ci_.Step("ruff check", lambda: ci_.command(["ruff", "check"], clone.root)),
            ci_.Step("ruff format", lambda: ci_.command(["ruff", "format", "--check"], clone.root)),
            ci_.Step("imports", lambda: _check_imports(clone, course)),
            ci_.Step("stubs", lambda: _check_stubs(clone, course)),
            ci_.Step("specs", lambda: _check_specs(clone, course, course.days)),
            ci_.Step("manifest", lambda: _check_manifest(clone)),
            ci_.Step("pictures", lambda: _check_pictures(clone)),
            ci_.Step("cuda", lambda: _check_cuda(clone)),
            ci_.Step("sanitizers", lambda: _sanitize(clone, quick=True)),
            ci_.Step("tests", lambda: ci_.run_tests(clone.root, Path(folder), jobs)),
            ci_.Step("verify", lambda: _verify_step(clone, course, jobs)),
        ]
        passed = ci_.run_steps(steps, click.echo)
    if not passed:
        raise SystemExit(1)


@main.command()
@click.argument("day", default="week1")
@click.option("--seed", default=0, show_default=True, help="Chooses the mistakes, and the tasks.")
@click.option("--tasks", type=click.IntRange(min=1), help="Only so many tasks.  [default: all, and the days]")
def rehearse(day: str, seed: int, tasks: int | None) -> None:
    """Play a new learner who does every task wrong once, then right. DAY as in `tinyllm-grade`; default:
    week 1.

    Prints what the learner was told, and ends with 1 when that is no good answer. In a temporary clone.
    """
    clone, course = _load()
    _end(_rehearse(clone, course.select(day), seed, tasks))


def _load() -> tuple[Clone, Course]:
    clone = find_clone()
    return clone, catalog.load(clone)


def _end(result: ci_.Result) -> None:
    if result.failed:
        raise SystemExit(1)


def _sanitize(clone: Clone, *, quick: bool) -> ci_.Result:
    problems = sanitize_.problems(clone, sanitize_.builds(quick=quick), click.echo)
    return _told(problems, "The sanitizers find nothing in the kernels of reference/.")


def _prove_why(
    clone: Clone,
    course: Course,
    days: Sequence[Day],
    sample: int | None,
    seed: int,
    pairs: int | None,
    jobs: int,
    *,
    verbose: bool,
) -> ci_.Result:
    def told(answer: guilt_sweep.Answer) -> None:
        if verbose or (answer.seen and not answer.right):
            click.echo(f"  {answer.told}")

    answers: list[guilt_sweep.Answer] = []
    for later in days:
        if not later.builds_on:
            click.echo(f"{later.name}  builds on no other day")
            continue
        if pairs:
            answers += guilt_sweep.ask_pairs(clone, course, later, pairs, seed, told=told)
            continue
        chosen = guilt_sweep.plants(course, later)
        if sample and sample < len(chosen):
            chosen = random.Random(seed).sample(chosen, sample)
        mine = guilt_sweep.ask(clone, course, chosen, jobs=jobs, told=told)
        answers += mine
        click.echo(f"{later.name}  {sum(a.right for a in mine)} of {sum(a.seen for a in mine)}")
    if answers:
        click.echo(guilt_sweep.pairs_told(answers) if pairs else guilt_sweep.table(answers))
    enough = guilt_sweep.share(answers) >= guilt_sweep.BAR
    return ci_.Result.of([] if enough else [f"why names the right day in {guilt_sweep.share(answers):.1%}"])


def _rehearse(clone: Clone, days: Sequence[Day], seed: int, tasks: int | None) -> ci_.Result:
    problems: list[str] = []
    named: list[bool] = []
    for turn in rehearsal.play(clone, days, seed, tasks):
        if isinstance(turn, str):
            problems.append(turn)
            continue
        click.echo(f"== {turn.title}\n{turn.told}")
        named.append(turn.named)
        problems += [f"{turn.title}: {fault}" for fault in turn.faults]
    click.echo(f"{len(named)} tasks done wrong, then right; {sum(named)} of the mistakes named in words")
    return _told(problems, "Each answer says which task failed, and what next; then each passed.")


def _check_stubs(clone: Clone, course: Course) -> ci_.Result:
    problems = fresh_progress.differs(clone, course)
    difference = stubs_.check(clone, course)
    if difference:
        click.echo(difference, nl=False)
        problems.insert(0, "exercises/ differs from a fresh generation")
    remedy = "Run: python -m tinyllm.grader.authoring stubs"
    told = [f"{problem}. {remedy}" for problem in problems]
    return _told(told, "exercises/ and progress/ are as they ship.")


def _check_manifest(clone: Clone) -> ci_.Result:
    remedy = "Run: python -P -m tinyllm.grader.authoring manifest"
    return _told([f"{p}. {remedy}" for p in manifest_.differs(clone)], "The manifest is of these files.")


def _check_pictures(clone: Clone) -> ci_.Result:
    remedy = "Run: python -P -m tinyllm.grader.authoring pictures"
    return _told([f"{p}. {remedy}" for p in pictures_.differs(clone)], "The pictures are what is shown now.")


def _check_imports(clone: Clone, course: Course) -> ci_.Result:
    found = imports_.violations(clone, course)
    fine = f"Every import is allowed. Files read: {imports_.count_files(clone)}"
    return _told([str(v) for v in found], fine)


def _check_specs(clone: Clone, course: Course, days: Sequence[Day]) -> ci_.Result:
    names = " ".join(day.name for day in days)
    return _told(spec_checks.problems(clone, days), f"Spec, lesson and tests belong together: {names}")


def _check_cuda(clone: Clone) -> ci_.Result:
    return ci_.command(["tinyllm.kernels.gpu_cuda_check", *map(str, kernels_of(clone))], clone.root)


def kernels_of(clone: Clone) -> list[Path]:
    """The GPU kernels' files of the reference."""
    return sorted(clone.reference.joinpath("kernels").glob("*.metal"))


def _told(problems: Sequence[str], fine: str) -> ci_.Result:
    for problem in problems:
        click.echo(problem)
    if not problems:
        click.echo(fine)
    return ci_.Result.of(problems)


def _verify(
    clone: Clone,
    course: Course,
    days: Sequence[Day],
    jobs: int,
    *,
    verbose: bool = False,
    part: int | None = None,
) -> list[verify_.Proof]:
    """Prove the days one after another: a line for each as it goes, then the failures and the table."""
    proofs = []
    for day in days:
        count = _Count(day.name, live=sys.stdout.isatty())
        proof = verify_.verify_day(clone, course, day, jobs=jobs, progress=count, part=part)
        proofs.append(proof)
        count.end(f"{proof.passed} of {len(proof.results)} claims hold  {proof.seconds:.1f} s")
        if verbose:
            for claim, finding in proof.results:
                click.echo(f"  {claim.name}: {finding.told}")
    click.echo("")
    for proof in proofs:
        for problem in proof.problems:
            click.echo(problem)
    click.echo(verify_.table(proofs))
    named = verify_.naming_of(proofs)
    click.echo(f"likely mistakes: {named}")
    if verbose or len(named.silent) <= SHOWN_SILENT:
        for mistake in named.silent:
            click.echo(f"  nothing is said of {mistake}")
    return proofs


def _problems(proofs: Sequence[verify_.Proof]) -> tuple[str, ...]:
    found = [problem for proof in proofs for problem in proof.problems]
    too_few = [p for p in verify_.naming_of(proofs).problems if p not in found]
    for problem in too_few:
        click.echo(problem)
    return (*found, *too_few)


class _Count:
    """A count that runs on the terminal's line; where the output is kept there is only its last word."""

    def __init__(self, name: str, *, live: bool) -> None:
        self.name = name
        self.live = live

    def __call__(self, done: int, total: int) -> None:
        if self.live:
            click.echo(f"\r{self.name}  {done}/{total}", nl=False)

    def end(self, text: str) -> None:
        click.echo(f"{chr(13) if self.live else ''}{self.name}  {text}")


def _verify_step(clone: Clone, course: Course, jobs: int) -> ci_.Result:
    part = _part_of(clone)
    click.echo(f"every tenth of the wrong solutions, from number {part} on; `verify` alone tries all")
    proofs = _verify(clone, course, course.days, jobs, part=part)
    problems = _problems(proofs)
    return ci_.Result(sum(p.passed for p in proofs), len(problems), problems)


def _part_of(clone: Clone) -> int:
    """Which part of the wrong solutions CI tries: told by the commit, so that it can be repeated."""
    try:
        commit = git.Repo(clone.root).head.commit.hexsha
    except (git.GitError, ValueError, OSError):  # no repository, or one without a commit
        return 1
    return int(commit, 16) % verify_.PARTS + 1
