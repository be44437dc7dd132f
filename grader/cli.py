"""The command line of `tinyllm-grade`: parses, calls one plain function, prints.

Whatever takes time to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import catalog, classes
from .catalog import Course, Day
from .clone import Clone, find_clone
from .errors import CourseError, UsageError
from .likely_screen import LikelyScreen
from .render import GradingScreen, Screen

if TYPE_CHECKING:
    from . import benching, restoring, runner
    from .report import DayReport
    from .standing import Standing


# What `compare` has the models read: a few sentences, so that positions and the mask matter.
PROMPT = "Once upon a time there was a small fox who lived near the river. One day the fox found a red ball."


class GradeByDefault(click.Group):
    """A group in which `tinyllm-grade day1.3 --task 2` means `tinyllm-grade grade day1.3 --task 2`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if not args or (args[0] not in self.commands and args[0] not in own):
            args = ["grade", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=GradeByDefault,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="With no command a day is graded: tinyllm-grade day1.1. See tinyllm-grade grade --help.",
)
@click.version_option(package_name="tinyllm")
def main() -> None:
    """Grade a day of the course, and find the way when stuck.

    DAY is day1.3 or 1.3; grading also takes week1 and all. Exit codes: 0 passed, 1 not passed yet,
    2 usage, 3 the environment is at fault, 4 refused by --strict, 130 interrupted.
    """


class Context:
    """What every command needs: the clone, the course, and a screen to print to."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.screen = Screen(verbose=verbose)
        self.clone: Clone = find_clone()
        self.course: Course = catalog.load(self.clone)

    def day(self, text: str) -> Day:
        return self.course.day(text)

    def next_day(self, text: str | None) -> Day:
        from .grading import days_to_grade

        return days_to_grade(self.clone, self.course, text)[0]

    def first_task(self, day: Day) -> int:
        """The number of the day's first task that has not passed; 1 when all have."""
        from . import attempts, standing

        events, _ = attempts.read(self.clone)
        hashes = standing.exercise_hashes(self.clone, self.course)
        days = standing.standings(self.course, events, hashes)
        return next((t.id for s in days if s.day == day.id for t in s.tasks if not t.passed), 1)

    def log(self, event: dict[str, Any]) -> None:
        """Append to the log and bring the tracker up to date."""
        from . import attempts, tracker

        attempts.append(self.clone, event)
        tracker.update(self.clone, self.course)


def reporting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a CourseError into its message and exit code; a closed pipe into silence."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except CourseError as error:
            Screen(stderr=True).error(error.message, error.next_step)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
        except BrokenPipeError:
            sys.stdout = None  # nobody reads on: nothing is left to flush
            sys.exit(1)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return run


# ---- grading


@main.command()
@click.argument("day", required=False)
@click.option("--task", "task", type=int, metavar="N", help="Grade this task only.")
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Which tree to grade (default: exercises).",
)
@click.option("--borrow", multiple=True, metavar="DAY", help="Take this day's modules from the reference.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead (schema: grader/report.schema.json)."
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML.")
@click.option("--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Seconds one check may take.")
@click.option("--no-progress", is_flag=True, help="Write no log, tracker or snapshot.")
@click.option("--no-why", is_flag=True, help="Do not ask which earlier day is to blame.")
@click.option("-v", "--verbose", is_flag=True, help="Every failure, with tracebacks.")
@classes.grading_options
@reporting
def grade(
    day: str | None,
    task: int | None,
    solution: str,
    borrow: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    timeout: float | None,
    no_progress: bool,
    no_why: bool,
    verbose: bool,
    for_class: dict[str, Any],
) -> None:
    """Grade DAY, or the next unfinished day.

    DAY is day1.3 or 1.3, a whole week (week1), or all.
    """
    from contextlib import ExitStack

    from . import grading

    listener: Any = Silence()
    cleanup = ExitStack()
    try:
        context = Context(verbose=verbose)
        days = grading.days_to_grade(context.clone, context.course, day)
        if task is not None:
            if len(days) != 1:
                raise UsageError("--task goes with one day.")
            days[0].task(task)
        borrowed = _borrowed(context, borrow, days if solution == "exercises" else ())
        if junit is not None and not junit.parent.is_dir():
            raise UsageError(f"--junit {junit}: the folder {junit.parent} does not exist.")
        classes.check_files(for_class)
        strict = classes.strict_grading(context.clone, context.course, solution, for_class)
        if strict is not None:
            cleanup.enter_context(strict)
        record = not no_progress and for_class["submission"] is None
        options = grading.Options(solution, borrowed, task, timeout, record, strict=strict)
        if not as_json:
            listener = TerminalListener(context, options)
        with cleanup:
            graded = grading.grade(context.clone, context.course, days, options, listener)
    except CourseError as error:
        if not as_json:
            raise
        click.echo(
            json.dumps({"schema": 1, "exit_code": error.exit_code, "days": [], "error": error.message})
        )
        sys.exit(error.exit_code)
    files = junit or for_class["gradescope"] or for_class["github"]
    if files is not None or as_json:
        from . import export

        if junit is not None:
            export.write_junit(graded.reports, junit)
        upstream = strict.baseline.name if strict is not None else ""
        document = export.as_json(graded.reports, graded.exit_code, upstream)
        classes.write_files(document, for_class)
        if as_json:
            click.echo(json.dumps(document, indent=2))
    if not as_json and not no_why and strict is None:
        _ask_why(context, graded.reports, options)
    sys.exit(graded.exit_code)


def _ask_why(context: Context, reports: list[DayReport], options: Any) -> None:
    """Where a day failed that builds on others: say so if one of those is to blame."""
    if not any(r.verdict.value == "not passed" and context.course.day(r.day).builds_on for r in reports):
        return
    from . import guilt_screen

    guilt_screen.after_grading(
        context.screen,
        context.clone,
        context.course,
        reports,
        solution=options.solution,
        borrowed=options.borrow,
        record=options.recorded,
    )


def _borrowed(context: Context, texts: tuple[str, ...], graded: tuple[Day, ...]) -> tuple[Day, ...]:
    """The days that `--borrow` names; of a whole week, all but those being graded."""
    chosen: list[Day] = []
    for text in texts:
        meant = context.course.select(text)
        others = [d for d in meant if d not in graded]
        if not others:
            names = ", ".join(d.name for d in meant)
            raise UsageError(f"{names} is being graded: borrowing it would grade the reference.")
        chosen += others
    return tuple(dict.fromkeys(chosen))


class Silence:
    """A listener that prints nothing."""

    def begin(self, day: Day) -> None: ...
    def event(self, event: runner.Event) -> None: ...
    def end(self, day: Day, report: DayReport, so_far: Standing | None) -> None: ...
    def broken(self, day: Day, report: DayReport) -> None: ...
    def looking(self, done: int, total: int) -> None: ...
    def likely(self, day: Day, found: Any) -> None: ...
    def notice(self, text: str) -> None: ...


class TerminalListener:
    """Prints a grading as it happens."""

    def __init__(self, context: Context, options: Any) -> None:
        self.context = context
        self.options = options
        self.screen = GradingScreen(context.screen)
        self._likely = LikelyScreen(context.screen)
        self._running = ""

    def begin(self, day: Day) -> None:
        self._day = day

    def event(self, event: runner.Event) -> None:
        from . import runner
        from .report import TaskResult

        match event:
            case runner.Launched():
                # Only now: the terminal library loads while the grading child boots.
                graded = [f"{self.options.solution}/{m}" for m in self._day.modules]
                self.screen.begin(
                    self._day.name, self._day.title, graded, [d.id for d in self.options.borrow]
                )
            case runner.Building():
                self.screen.show_running("compiling the kernels (about 15 s the first time)")
            case runner.Started():
                self._running = f"{event.index} of {event.total}  task {event.task}: {event.title}"
                self.screen.show_running(self._running)
            case runner.Slow():
                limit = "" if math.isinf(event.limit) else f" of {event.limit:.0f}"
                self.screen.show_running(f"{event.seconds:.0f}{limit} s  {self._running}")
            case TaskResult():
                self.screen.task_done(event)

    def end(self, day: Day, report: DayReport, so_far: Standing | None) -> None:
        from . import advice
        from .words import duration

        self.screen.stop()
        self.screen.failures(report, advice.for_tasks(day, report))
        lines = advice.for_day(self.context.course, day, report)
        if self.options.recorded:
            lines += advice.for_failures(day, report)
        if so_far is not None and so_far.attempts > 1:
            lines.append(f"attempt {so_far.attempts}, {duration(so_far.seconds)} on this day")
        self.screen.verdict(report, ", ".join(report.graded), lines)

    def broken(self, day: Day, report: DayReport) -> None:
        from .grading import first_failing_task

        task = day.task(first_failing_task(report))
        self.context.screen.paragraph(
            f"{day.name} had passed, its files changed since, and now task {task.id} ({task.title}) does not "
            f"pass. See it: tinyllm-grade {day.name}",
            "bold yellow",
        )

    def looking(self, done: int, total: int) -> None:
        self._likely.progress(done, total)

    def likely(self, day: Day, found: Any) -> None:
        self._likely.found(day, found)

    def notice(self, text: str) -> None:
        self.context.screen.paragraph(text, "dim")

    def stop(self) -> None:
        """Leave no spinner behind, wherever the grading was cut off."""
        self.screen.stop()
        self._likely.stop()


@main.command()
@click.argument("day", required=False)
@click.option(
    "--poll", is_flag=True, help="Look at the files again and again; for file systems without events."
)
@click.option("--keep", is_flag=True, help="Do not clear the screen before a grading.")
@click.option("--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Seconds one check may take.")
@click.option("--no-progress", is_flag=True, help="Write no log, tracker or snapshot.")
@click.option("-v", "--verbose", is_flag=True, help="Every failure, with tracebacks.")
@reporting
def watch(
    day: str | None, poll: bool, keep: bool, timeout: float | None, no_progress: bool, verbose: bool
) -> None:
    """Grade DAY at every save, with keys for hint, diff, lesson and the next day.

    DAY is by default the next unfinished one. Without a terminal there are no keys, and the program ends when
    the day passes.
    """
    import contextlib

    from . import grading
    from .keyboard import Keyboard, at_a_terminal
    from .watch_screen import WatchScreen
    from .watching import Watch

    def command(arguments: Any) -> None:
        with contextlib.suppress(SystemExit):
            main.main(args=list(arguments), prog_name="tinyllm-grade", standalone_mode=False)

    context = Context(verbose=verbose)
    chosen = context.next_day(day)
    options = grading.Options(record=not no_progress)
    keys = Keyboard() if at_a_terminal() else None
    with keys or contextlib.nullcontext():
        watching = Watch(
            context.clone,
            context.course,
            chosen,
            TerminalListener(context, options),
            WatchScreen(context.screen, keys=keys is not None, clear=not keep),
            keys,
            command,
            poll=poll,
            timeout=timeout,
            record=not no_progress,
        )
        code = watching.run()
    sys.exit(code)


# ---- the model speaks


def speaking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `generate` and `chat` share."""
    trees, flag = click.Choice(["exercises", "reference"]), click.option
    share, whole = click.FloatRange(0, 1), click.IntRange(min=1)
    model = "A folder, or a Hugging Face id, which is downloaded (default: tiny-qwen2, which is here)."
    options = (
        flag("--solution", type=trees, default="exercises", help="Whose code it is (default: exercises)."),
        flag("--borrow", multiple=True, metavar="DAY", help="Take this day's modules from the reference."),
        flag("--model", "model_name", default="", metavar="NAME", help=model),
        flag("--engine", "engine_id", metavar="ID", help="How the model is run (default: the latest done)."),
        flag("--max-tokens", type=whole, default=256, help="The longest reply (default: 256)."),
        flag("--temp", type=click.FloatRange(min=0), default=0.0, help="Temperature (default: 0, greedy)."),
        flag("--top-p", type=share, help="Draw from the tokens that make up this share."),
        flag("--top-k", type=whole, help="Draw from the so many most probable tokens."),
        flag("--min-p", type=share, help="Draw from tokens with this share of the best one's probability."),
        flag("--seed", type=click.IntRange(0, 2**63 - 1), help="The same draws every time."),
        flag("--stop", multiple=True, metavar="TEXT", help="End the reply before this text."),
        flag("--system", default="", metavar="TEXT", help="What the model is told first."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _speaker(
    solution: str,
    borrow: tuple[str, ...],
    model_name: str,
    engine_id: str | None,
    max_tokens: int,
    temp: float,
    seed: int | None,
    stop: tuple[str, ...],
    **sampling: float | None,
) -> tuple[Any, Any]:
    """The started child and the request, from the options of `speaking_options`."""
    from . import conversation, models, speaking

    context = Context()
    request = speaking.Ask(max_tokens=max_tokens, temp=temp, stop=stop, **sampling)
    given = [f"--{name.replace('_', '-')}" for name, value in sampling.items() if value is not None]
    conversation.check_options(request, given)
    if engine_id is None:
        engine = speaking.default_engine(context.clone, context.course, solution)
    else:
        engine = context.course.engine(engine_id)
    borrowed = _borrowed(context, borrow, ())
    model = models.resolve(context.clone, model_name)
    speaker = speaking.Speaker(
        context.clone, context.course, engine, model, solution=solution, borrow=borrowed, seed=seed
    )
    return speaker, request


@main.command()
@click.argument("prompt", required=False)
@click.option(
    "--raw", is_flag=True, help="Go on from the prompt as it is, without the model's chat template."
)
@speaking_options
@reporting
def generate(prompt: str | None, raw: bool, system: str, **options: Any) -> None:
    """Have your code run a model and reply to PROMPT.

    PROMPT is text, or - for stdin. The reply goes to stdout, figures and the like to stderr.
    """
    from dataclasses import replace

    from . import conversation

    text = conversation.prompt_of(prompt)
    if raw and system:
        raise UsageError("--raw takes the prompt as it is, so --system has no place in it.")
    speaker, request = _speaker(**options)
    if raw:
        request = replace(request, text=text)
    else:
        first = [{"role": "system", "content": system}] if system else []
        request = replace(request, messages=[*first, {"role": "user", "content": text}])
    with speaker:
        sys.exit(conversation.generate(speaker, request))


@main.command()
@speaking_options
@reporting
def chat(system: str, **options: Any) -> None:
    """Talk with a model that your code runs.

    A message a line, from the terminal or a pipe. /help lists what else can be typed.
    """
    from . import conversation

    speaker, request = _speaker(**options)
    with speaker:
        sys.exit(conversation.chat(speaker, request, system))


@main.command()
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Whose code it is (default: exercises).",
)
@click.option("--borrow", multiple=True, metavar="DAY", help="Take this day's modules from the reference.")
@click.option(
    "--model",
    "model_name",
    default="",
    metavar="NAME",
    help="A folder, or a Hugging Face id, which is downloaded (default: tiny-qwen2, which is here).",
)
@click.option("--engine", "engine_id", metavar="ID", help="How the model is run (default: the latest done).")
@click.option(
    "--host", default="127.0.0.1", help="The address to listen on (default: 127.0.0.1, this machine)."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="0 is any that is free (default: 8000)."
)
@click.option(
    "--api-key",
    envvar="TINYLLM_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="What clients must send as Bearer token; better given in the environment.",
)
@click.option("--slots", type=click.IntRange(1, 256), default=8, help="Requests in one batch (default: 8).")
@click.option(
    "--queue-limit",
    type=click.IntRange(min=1),
    default=64,
    help="Requests in hand; more are told to come back later (default: 64).",
)
@click.option(
    "--context", type=click.IntRange(min=2), metavar="N", help="Tokens of a request, prompt and reply."
)
@reporting
def serve(
    solution: str,
    borrow: tuple[str, ...],
    model_name: str,
    engine_id: str | None,
    api_key: str | None,
    **options: Any,
) -> None:
    """Serve a model over HTTP, in the form of OpenAI's API.

    Your scheduler and server run it. Ctrl-C ends: replies in progress come to their end first.
    """
    from . import models, serving, serving_screen

    context = Context()
    engine = serving.engine_to_serve(context.clone, context.course, solution, engine_id)
    borrowed = _borrowed(context, borrow, ())
    model = models.resolve(context.clone, model_name)
    asked = serving.Options(**options)
    with serving.Host(
        context.clone,
        context.course,
        engine,
        model,
        asked,
        solution=solution,
        borrow=borrowed,
        api_key=api_key or None,
    ) as host:
        sys.exit(serving_screen.serve(host, context.screen))


# ---- measuring


@main.command()
@click.argument("what", default="model", metavar="[DAY|model|serve]")
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Which tree to measure (default: exercises, beside the reference).",
)
@click.option("--borrow", multiple=True, metavar="DAY", help="Take this day's modules from the reference.")
@click.option("--rounds", type=click.IntRange(1, 1000), help="Turns of each contestant (default: 5).")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead.")
@click.option(
    "--shape",
    type=click.Choice(["tiny", "qwen2-0.5b", "qwen2-7b-2layers"]),
    help="model: random weights of this shape (default: tiny).",
)
@click.option("--model", "model_name", metavar="NAME", help="model: these weights, as in generate.")
@click.option("--engine", "engine_id", metavar="ID", help="model: how it is run (default: the latest done).")
@click.option(
    "--against",
    type=click.Choice(["mlx-lm", "none"]),
    help="model: who runs beside (default: mlx-lm where it is quick, so with tiny).",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="model: of the random scales and activations (default: float32).",
)
@click.option(
    "--prefill", type=click.IntRange(min=1), multiple=True, help="model: tokens to read (128, 512)."
)
@click.option(
    "--prompt", type=click.IntRange(min=1), help="model: tokens before those decoded (default: 128)."
)
@click.option("--tokens", type=click.IntRange(min=1), help="model: tokens to decode (32).")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The picture of the measurement, as SVG: of model a roofline, of day2.7 its schedule.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), help="serve: how long its clients ask (default: 10)."
)
@reporting
def bench(
    what: str,
    solution: str,
    borrow: tuple[str, ...],
    rounds: int | None,
    as_json: bool,
    plot: Path | None,
    seconds: float | None,
    **options: Any,
) -> None:
    """Measure a day's code, a whole model that it runs, or a server.

    DAY makes the measurement that ends its lesson. model reads prompts and decodes with the days' code beside
    the reference and mlx-lm, in turns, and sets that beside what the machine's memory allows. serve has 64
    clients ask a server at once, a fifth of them hanging up, and compares each reply with the one that the
    same request gets alone.
    """
    from . import bench_screen, benching

    name = what.strip().lower()
    try:
        if plot is not None and not plot.absolute().parent.is_dir():
            raise UsageError(f"--plot {plot}: the folder {plot.parent} does not exist.")
        if seconds is not None and name != "serve":
            raise UsageError("--seconds goes with bench serve.")
        context = Context()
        if name == "serve":
            measurement = _server_to_measure(context, solution, borrow, rounds, plot, seconds, **options)
            with measurement:
                measured = bench_screen.follow(measurement, None if as_json else context.screen, None)
            if as_json:
                click.echo(json.dumps(bench_screen.as_json(name, solution, measured), indent=2))
            sys.exit(measured.exit_code)
        if name == "model":
            subject = _model_to_measure(context, solution, rounds, plot is not None, **options)
        else:
            given = [option for option, value in options.items() if value]
            if given:
                option = given[0].removesuffix("_name").removesuffix("_id")
                raise UsageError(f"--{option} goes with bench model, not with a day.")
            subject = benching.Subject(day=benching.day_to_measure(context.course, what))
        name = subject.name
        borrowed = _borrowed(context, borrow, ())
        with benching.Measurement(
            context.clone, context.course, subject, solution=solution, borrow=borrowed, rounds=rounds
        ) as measurement:
            measured = bench_screen.follow(measurement, None if as_json else context.screen, plot)
    except CourseError as error:
        if not as_json:
            raise
        measured = bench_screen.Measured((), error.exit_code, error.message)
    if as_json:
        click.echo(json.dumps(bench_screen.as_json(name, solution, measured), indent=2))
    sys.exit(measured.exit_code)


def _server_to_measure(
    context: Context,
    solution: str,
    borrow: tuple[str, ...],
    rounds: int | None,
    plot: Path | None,
    seconds: float | None,
    *,
    model_name: str | None,
    engine_id: str | None,
    **others: Any,
) -> Any:
    """The server that `bench serve` is asked for."""
    from . import models, serving, serving_bench

    for option, value in {"rounds": rounds, "plot": plot, **others}.items():
        if value:
            raise UsageError(f"--{option} does not go with bench serve.")
    return serving_bench.ServeMeasurement(
        context.clone,
        context.course,
        serving.engine_to_serve(context.clone, context.course, solution, engine_id),
        models.resolve(context.clone, model_name or ""),
        seconds or 10.0,
        solution=solution,
        borrow=_borrowed(context, borrow, ()),
    )


def _model_to_measure(
    context: Context,
    solution: str,
    rounds: int | None,
    plot: bool,
    *,
    shape: str | None,
    model_name: str | None,
    engine_id: str | None,
    against: str | None,
    dtype: str | None,
    prefill: tuple[int, ...],
    prompt: int | None,
    tokens: int | None,
) -> benching.Subject:
    """The engine and the weights that `bench model` is asked for."""
    from . import benching, models, speaking

    if model_name and (shape or dtype):
        raise UsageError(
            f"--model has weights of its own: --{'shape' if shape else 'dtype'} goes without it."
        )
    if engine_id is None:
        engine = speaking.default_engine(context.clone, context.course, solution)
    else:
        engine = context.course.engine(engine_id)
    folder = str(models.resolve(context.clone, model_name).path) if model_name else ""
    shape = "" if model_name else shape or "tiny"
    if against is None:  # MLX's own 4-bit product takes seconds a token for anything larger on a CPU
        against = "mlx-lm" if shape in ("tiny", "") else "none"
    options = benching.ModelOptions(
        shape=shape,
        folder=folder,
        dtype=dtype or "float32",
        against=against,
        prefill=prefill or (128, 512),
        prompt=prompt or 128,
        tokens=tokens or 32,
        rounds=rounds or 5,
        plot=plot,
    )
    return benching.Subject(engine=engine, model=options)


# ---- finding the way


@main.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="As JSON (schema: grader/progress.schema.json).")
@reporting
def list_days(as_json: bool) -> None:
    """Every day: status, tasks, attempts, time, hints."""
    from . import overview

    context = Context()
    if as_json:
        from . import progress_data

        click.echo(json.dumps(progress_data.of_clone(context.clone, context.course), indent=2))
        return
    overview.show(context.screen, context.clone, context.course)


@main.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "json", "gradescope", "github"]),
    default="html",
    help="html, json: your progress; gradescope, github: a grading (default: html).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to; - is stdout (default: progress/report.html; stdout for the others).",
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="What `tinyllm-grade DAY --json` printed; - is stdin.",
)
@click.option("--date", "on", metavar="DATE", help="The date on the page (default: today).")
@click.option("--name", default="", metavar="TEXT", help="Whose progress it is.")
@classes.with_points
@reporting
def report(
    form: str, output: Path | None, source: Path | None, on: str | None, name: str, points: int, credit: str
) -> None:
    """Your progress as one page, or a grading for Gradescope and GitHub."""
    from . import report_command

    context = Context()
    content = report_command.text(
        context.clone, context.course, form, source=source, on=on, name=name, points=points, credit=credit
    )
    written = report_command.write(context.clone, form, output, content)
    if written is not None:
        Screen(stderr=True).line(context.clone.relative(written))


@main.command()
@click.argument("day", required=False)
@click.option("--section", metavar="TEXT", help="Only the section whose heading holds this text.")
@reporting
def read(day: str | None, section: str | None) -> None:
    """The lesson of DAY; as Markdown when piped."""
    from . import attempts, lessons

    context = Context()
    chosen = context.next_day(day)
    text = lessons.section(chosen, section) if section else lessons.text(chosen)
    context.log(attempts.read_event(chosen.id))
    console = context.screen.console
    if not console.is_terminal:
        click.echo(text)
        return
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-RFX")  # colours as colours; a short text is just printed
    with console.pager(styles=True):
        console.print(Markdown(text, code_theme="ansi_dark"), width=context.screen.width)


@main.command()
@click.argument("day", required=False)
@click.option("--task", "task", type=int, metavar="N", help="Only this task's checks.")
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Which tree to look at (default: exercises).",
)
@click.option("--borrow", multiple=True, metavar="DAY", help="Take this day's modules from the reference.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@click.option("--no-progress", is_flag=True, help="Write nothing to the log.")
@click.option("-v", "--verbose", is_flag=True, help="Every trial.")
@reporting
def why(
    day: str | None,
    task: int | None,
    solution: str,
    borrow: tuple[str, ...],
    as_json: bool,
    no_progress: bool,
    verbose: bool,
) -> None:
    """Which day is to blame for what fails in DAY.

    Runs the failing checks with the reference's modules in place of yours, one day at a time.
    """
    from . import guilt_screen

    try:
        context = Context(verbose=verbose)
        chosen = context.next_day(day)
        if task is not None:
            chosen.task(task)
        code = guilt_screen.explain(
            context.screen,
            context.clone,
            context.course,
            chosen,
            solution=solution,
            borrowed=_borrowed(context, borrow, (chosen,)),
            only_task=task,
            as_json=as_json,
            record=not no_progress,
        )
    except CourseError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"schema": 1, "exit_code": error.exit_code, "error": error.message}))
        code = error.exit_code
    sys.exit(code)


@main.command()
@click.argument("day", required=False)
@click.option("--task", "number", type=int, metavar="N", help="The task (default: the first not passed).")
@click.option("--again", is_flag=True, help="Show the hints already taken.")
@reporting
def hint(day: str | None, number: int | None, again: bool) -> None:
    """The next hint of a task. Taking one is recorded."""
    from . import attempts, lessons

    context = Context()
    chosen = context.next_day(day)
    events, _ = attempts.read(context.clone)
    task = chosen.task(context.first_task(chosen) if number is None else number)
    screen = context.screen
    if again:
        taken = lessons.seen_hints(chosen, task, events)
        screen.line(f"{chosen.name}, task {task.id}: {task.title}", "bold")
        for n, text in enumerate(taken, 1):
            screen.labelled(f"hint {n}", text, indent=2)
        if not taken:
            screen.paragraph("No hint taken yet.", indent=2)
        return
    found = lessons.next_hint(chosen, task, events)
    context.log(attempts.hint_event(chosen.id, task.id, found.number))
    screen.line(f"{chosen.name}, task {task.id}: {task.title}", "bold")
    screen.labelled(f"hint {found.number}/{found.total}", found.text, indent=2)
    if not found.new:
        screen.paragraph("That was the last hint, once more.", "dim", indent=2)
    if found.number == found.total:
        screen.labelled("next", f"tinyllm-grade diff {chosen.name} --task {task.id}", indent=2)
    else:
        screen.labelled("more", f"tinyllm-grade hint {chosen.name} --task {task.id}", indent=2)


@main.command()
@click.argument("day", required=False)
@click.option("--task", "number", type=int, metavar="N", help="Only this task's symbols.")
@click.option("--stat", is_flag=True, help="Only how many lines differ.")
@click.option("--tool", is_flag=True, help="Open both files in git's difftool.")
@reporting
def diff(day: str | None, number: int | None, stat: bool, tool: bool) -> None:
    """Your code beside the reference. Looking is recorded.

    One task's functions and classes at a time with --task; side by side where the terminal is wide.
    """
    from . import attempts, diffing

    context = Context()
    chosen = context.next_day(day)
    if number is not None:
        chosen.task(number)
    diffs = [] if tool else diffing.compare(context.clone, chosen, number)
    context.log(attempts.diff_event(chosen.id, number))
    if tool:
        diffing.difftool(context.clone, chosen)
        return
    console = context.screen.console
    if stat:
        for symbol, added, removed in diffing.stat(diffs):
            click.echo(f"{symbol:<56} +{added:<4} -{removed}")
        return
    colour = console.is_terminal and not console.no_color
    shown = diffing.render(diffs, width=console.width, colour=colour)
    if isinstance(shown, str):
        click.echo(shown, nl=False)
    else:
        console.print(shown)


@main.command()
@click.argument("day", required=False)
@click.option("--task", "number", type=int, metavar="N", help="The task (default: the first not passed).")
@click.option("--check", default="", metavar="NAME", help="A check's name, or a part of it.")
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Whose code is followed (default: exercises).",
)
@reporting
def trace(day: str | None, number: int | None, check: str, solution: str) -> None:
    """Your function line by line: the shape, dtype and range of all it makes.

    It runs once, on the inputs of the task's smallest failure, or else of its smallest check. Every array is
    computed at its line; the first NaN is marked, and what is the reference's as well.
    """
    from . import tracing, tracing_screen

    context = Context()
    chosen = context.next_day(day)
    task = chosen.task(context.first_task(chosen) if number is None else number)
    console = context.screen.console
    status = console.status("starting") if console.is_terminal else None
    try:
        if status is not None:
            status.start()
        found = tracing.trace(
            context.clone,
            context.course,
            chosen,
            task,
            solution=solution,
            check=check,
            on_stage=status.update if status is not None else lambda stage: None,
        )
    except tracing.Interrupted as stopped:
        where = f", at {stopped}" if str(stopped) else ""
        context.screen.paragraph(f"stopped by Ctrl-C{where}", "bold yellow")
        sys.exit(130)
    finally:
        if status is not None:
            status.stop()
    tracing_screen.show(context.screen, found)
    sys.exit(found.exit_code)


@main.command()
@click.argument("day", required=False)
@click.argument("check", required=False)
@click.option("--task", type=int, metavar="N", help="Only this task's failures.")
@click.option("--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Seconds one case may take.")
@click.option("-v", "--verbose", is_flag=True, help="Every failure, not each task's smallest.")
@reporting
def replay(
    day: str | None, check: str | None, task: int | None, timeout: float | None, verbose: bool
) -> None:
    """Run the failures that are kept again.

    Each failing check leaves its smallest case in progress/failures, with a repro.py for python -m pdb.
    CHECK is the name of a check, or a part of it. Without DAY: the day that failed last.
    """
    from . import replaying

    context = Context(verbose=verbose)
    chosen, kept = replaying.choose(context.clone, context.course, day, check, task)
    report = replaying.run(context.clone, context.course, chosen, kept, timeout=timeout)
    sys.exit(replaying.show(context.screen, context.clone, chosen, kept, report))


@main.command()
@click.argument("day", required=False)
@click.option(
    "--prompt", default=PROMPT, metavar="TEXT", help="What both models read (default: a story's beginning)."
)
@click.option(
    "--model",
    default="",
    metavar="NAME",
    help="A folder, or an id on Hugging Face (default: tiny-qwen2).",
)
@click.option(
    "--solution",
    type=click.Choice(["exercises", "reference"]),
    default="exercises",
    help="Which tree to compare (default: exercises).",
)
@click.option("-v", "--verbose", is_flag=True, help="Every operation of every layer.")
@reporting
def compare(day: str | None, prompt: str, model: str, solution: str, verbose: bool) -> None:
    """Your model's forward pass beside the reference's.

    Both read the same prompt with the same weights. A table shows each operation's shape and difference;
    the first operation that differs is named. DAY is a day that has a model, by default the last one.
    """
    from . import comparing, comparison_screen, models

    context = Context(verbose=verbose)
    chosen = comparing.comparable(context.course, day)
    folder = models.resolve(context.clone, model).path
    console = context.screen.console
    status = console.status("starting") if console.is_terminal else None
    try:
        if status is not None:
            status.start()
        found = comparing.compare(
            context.clone,
            context.course,
            chosen,
            solution=solution,
            model=folder,
            prompt=prompt,
            on_stage=status.update if status is not None else lambda stage: None,
        )
    except comparing.Interrupted as stopped:
        line = f", at {stopped.where}" if stopped.where else ""
        context.screen.paragraph(f"stopped by Ctrl-C{line}", "bold yellow")
        sys.exit(130)
    finally:
        if status is not None:
            status.stop()
    comparison_screen.show(context.screen, found)
    sys.exit(found.exit_code)


@main.command()
@click.argument("day", required=False)
@click.option("-n", "most", type=click.IntRange(min=1), help="Only so many (of several days: 10).")
@click.option("--answers", is_flag=True, help="Show the questions with their answers; nothing is asked.")
@click.option("--seed", default="", metavar="TEXT", help="The same numbers and order again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; answers are still read from stdin.")
@click.option("--no-progress", is_flag=True, help="Write no log and no tracker.")
@reporting
def quiz(
    day: str | None, most: int | None, answers: bool, seed: str, as_json: bool, no_progress: bool
) -> None:
    """The check questions of DAY, with fresh numbers each time.

    DAY is day1.3 or 1.3; week1 and all ask what is due. What was wrong last time comes first. Answers are
    read from the terminal or, a line each, from a pipe.
    """
    from . import quiz_command

    try:
        context = Context()
        screen = Screen(stderr=True) if as_json else context.screen
        options = quiz_command.Options(day, most, answers, seed, as_json, not no_progress)
        sys.exit(quiz_command.run(context.clone, context.course, screen, options))
    except CourseError as error:
        if not as_json:
            raise
        click.echo(json.dumps({"schema": 1, "exit_code": error.exit_code, "error": error.message}))
        sys.exit(error.exit_code)


@main.command()
@click.argument("day", required=False)
@reporting
def note(day: str | None) -> None:
    """Your journal page of DAY, in your editor.

    A page has what the log knows of the day, kept up to date, and sections of your own below it.
    """
    from . import journal

    context = Context()
    sys.exit(journal.open_page(context.clone, context.course, context.next_day(day), context.screen))


@main.command()
@click.argument("day", required=False)
@click.option("--task", "number", type=int, metavar="N", help="The task (default: the first not passed).")
@click.option("--install", is_flag=True, help="Write it to the files that assistants read by themselves.")
@click.option("--uninstall", is_flag=True, help="Remove what --install wrote.")
@reporting
def tutor(day: str | None, number: int | None, install: bool, uninstall: bool) -> None:
    """A brief that makes any AI assistant a tutor for DAY: it asks, and never hands over the solution."""
    from . import tutor as tutoring

    context = Context()
    if install and uninstall:
        raise UsageError("--install and --uninstall do not go together.")
    if uninstall:
        tutoring.uninstall(context.clone, context.screen)
        return
    chosen = context.next_day(day)
    if install:
        tutoring.install(context.clone, context.course, chosen, context.screen)
    else:
        click.echo(tutoring.brief(context.clone, context.course, chosen, number), nl=False)


@main.command()
@click.option("-n", "count", type=click.IntRange(min=1), default=20, help="How many (default: 20).")
@click.option("--json", "as_json", is_flag=True, help="All of them as JSON.")
@reporting
def history(count: int, as_json: bool) -> None:
    """Every graded state of your exercises, the newest first."""
    from . import snapshots

    context = Context()
    kept = snapshots.history(context.clone)
    if as_json:
        from . import progress_data

        click.echo(json.dumps(progress_data.of_snapshots(kept), indent=2))
        return
    if not kept:
        context.screen.paragraph("No snapshot yet: grading a day makes one.")
    for snapshot in kept[:count]:
        when = snapshot.when.astimezone().strftime("%Y-%m-%d %H:%M")
        context.screen.line(f"{snapshot.number:>4}  {snapshot.short}  {when}  {snapshot.message}")
    if len(kept) > count:
        context.screen.line(
            f"      and {len(kept) - count} older: tinyllm-grade history -n {len(kept)}", "dim"
        )


@main.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a number
@click.argument("snapshot")
@click.option("--day", "day", metavar="DAY", help="Bring back only this day's files.")
@reporting
def restore(snapshot: str, day: str | None) -> None:
    """Bring back a snapshot; what is there is kept first.

    SNAPSHOT is an id or a number from `tinyllm-grade history`, or latest.
    """
    from . import attempts, restoring, snapshots

    context = Context()
    chosen = context.day(day) if day else None
    wanted = snapshots.resolve(context.clone, snapshot)
    done = restoring.restore(context.clone, wanted.id, chosen)
    context.log(attempts.restore_event(wanted.id, day=chosen.id if chosen else ""))
    which = f"{chosen.name} is" if chosen else "exercises are"
    _tell(context, done, f"{which} as in snapshot {wanted.number} ({wanted.short}, {wanted.message})")


@main.command()
@click.argument("day")
@reporting
def reset(day: str) -> None:
    """Bring back the stub of DAY; what is there is kept first."""
    from . import attempts, restoring
    from .authoring import stubs

    context = Context()
    days = context.course.select(day)
    wanted = {m: stubs.stub(context.clone, context.course, m) for d in days for m in d.modules}
    done = restoring.reset(context.clone, wanted)
    for chosen in days:
        context.log(attempts.reset_event(chosen.id))
    _tell(context, done, f"{', '.join(d.name for d in days)}: the stub is back")


def _tell(context: Context, done: restoring.Change, what: str) -> None:
    """Say what a restore or reset changed, and where the state before is kept."""
    screen = context.screen
    if not done:
        screen.line("Nothing to change: the files are so already.")
        return
    screen.line(what, "bold")
    for path in done.written:
        screen.labelled("written", f"exercises/{path}", indent=2)
    for path in done.removed:
        screen.labelled("removed", f"exercises/{path}", indent=2)
    if done.snapshot:
        screen.labelled("before", f"kept; to go back: tinyllm-grade restore {done.snapshot[:8]}", indent=2)
    elif done.folder:
        screen.labelled("before", f"kept in {context.clone.relative(done.folder)}", indent=2)


@main.command()
@reporting
def doctor() -> None:
    """What this machine has and lacks for each day."""
    from . import doctor as examination
    from .doctor import State

    context = Context()
    screen = context.screen
    findings = examination.examine(context.clone, context.course)
    for finding in findings:
        mark = {State.OK: "ok", State.MISSING: "MISSING", State.LATER: "later", State.NOTE: "note"}[
            finding.state
        ]
        style = {"ok": "green", "MISSING": "bold red"}.get(mark, "yellow")
        screen.labelled(mark, f"{finding.name}: {finding.detail}", style if mark != "ok" else None, indent=2)
        if finding.fix:
            screen.labelled("", f"fix: {finding.fix}", indent=2)
    screen.line()
    for span, needs, present in examination.day_needs(context.course):
        screen.labelled("ready" if present else "not here", f"{span} {needs}", indent=2)
    sys.exit(3 if any(f.state is State.MISSING for f in findings) else 0)
