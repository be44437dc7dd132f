"""generate and chat from outside, and the process that speaks: real processes on tiny models."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import psutil
import pytest
from click.testing import CliRunner

from tinyllm.grader import catalog, models, speaking
from tinyllm.grader.bench.workshop import GRADE, finished_copy
from tinyllm.grader.cli import main
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.errors import EnvironmentFault, UsageError
from tinyllm.grader.speaking import Ask, Began, Done, Event, NotSpoken, Piece, Speaker
from tinyllm.grader.tests import small_models, toy
from tinyllm.grader.tests.small_models import STEPS, TEXT

SECONDS = 30
GENERATION = "week1/generation.py"


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a reply."""
    folder = tmp_path_factory.mktemp("models") / "no end"
    return small_models.write(folder, endless=True, max_position_embeddings=100_000)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose exercises are done, in a folder with a space; a small model is in tiny-qwen2's place."""
    clone = finished_copy(Clone(installed_root()), tmp_path_factory.mktemp("clones") / "my clone")
    small_models.write(models.shipped(clone))
    return clone


@pytest.fixture
def clone(finished: Clone, tmp_path: Path) -> Clone:
    """One of its own, to write wrong code into."""
    shutil.copytree(finished.root, tmp_path / "my clone")
    return Clone(tmp_path / "my clone")


def environment(clone: Clone, **more: str) -> dict[str, str]:
    return toy.Toy(clone).environment(**more)


def begin(clone: Clone, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GRADE, *arguments],
        env=environment(clone, **more),
        cwd=clone.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str], said: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr); every line of stderr within 80 columns."""
    out, err = process.communicate(said, timeout=SECONDS)
    assert "Traceback" not in err
    assert all(len(line) <= 80 for line in err.splitlines()), err
    return process.returncode, out, err


def speak(clone: Clone, *arguments: str, said: str = "", **more: str) -> tuple[int, str, str]:
    return finish(begin(clone, *arguments, **more), said)


def write(clone: Clone, body: str, module: str = GENERATION) -> None:
    """A stream_generate with this body; in it `reference(...)` is the one that was there."""
    file = clone.exercises / module
    body = body.replace("\n", "\n    ")
    file.write_text(
        file.read_text().replace("def stream_generate(", "def reference(")
        + "\n\ndef stream_generate(model, tokenizer, prompt, **options):\n    " + body + "\n"
    )  # fmt: skip


def words(text: str) -> str:
    return " ".join(text.split())


# ---- generate


def test_the_reply_alone_is_on_stdout(finished: Clone, tmp_path: Path) -> None:
    folder = small_models.write(tmp_path / "a model", bits=4, dtype=mx.bfloat16, shards=3)
    code, out, err = speak(finished, "generate", "Hello", "--model", str(folder), "--solution", "reference")
    assert (code, out) == (0, f"{TEXT}\n")
    figures = rf"24 prompt tokens, {STEPS} tokens, first after [\d.]+ s, [\d.]+ tokens/s\n"
    assert re.fullmatch(figures, err), err


def test_what_the_code_prints_is_not_in_the_reply(clone: Clone) -> None:
    look = "print('a look inside', prompt[:4])"
    write(clone, f"{look}\nyield from reference(model, tokenizer, prompt, **options)")
    code, out, err = speak(clone, "generate", said="Hi\n", NO_COLOR="1")
    assert (code, out) == (0, f"{TEXT}\n")
    assert "printed    a look inside <|im" in err
    assert "21 prompt tokens" in err  # without the line break that ended the input


def test_an_unfinished_day_is_named(clone: Clone) -> None:
    for module in ("norm_mlp", "qwen2_model", "generation"):
        stub = installed_root() / "exercises" / "week1" / f"{module}.py"
        shutil.copy(stub, clone.exercises / "week1")
    code, out, err = speak(clone, "generate", "Hello", "--borrow", "1.5")
    assert (code, out) == (1, "")
    told = words(err)
    assert told.startswith("Day 1.4, task ")
    assert " is not written yet. This needs days 1.1 to 1.6. Unfinished too: 1.6. next" in told
    borrow = "--borrow 1.4 --borrow 1.5 --borrow 1.6, or --solution reference"
    assert told.endswith(f"next tinyllm-grade day1.4 or for now: {borrow}")


def test_an_exception_is_told_at_the_learners_line_in_about_ten_lines(clone: Clone) -> None:
    file = clone.exercises / "week1" / "gqa.py"
    file.write_text(file.read_text().replace("key = self.rope(key).", "key = self.rope(key)[0]."))
    code, out, err = speak(clone, "generate", "Hello")
    assert (code, out) == (1, "")
    assert re.match(r"ValueError: \[transpose\] ", err)
    assert re.search(r"your line  exercises/week1/gqa\.py:\d+ in \S+\n +key = self\.rope\(key\)\[0\]\.", err)
    assert re.search(r"there float32: .*x \(1, 24, 64\).*; mask = 'causal'", words(err))
    assert err.endswith("    next       tinyllm-grade day1.3   (Grouped / multi-query attention)\n")
    assert len(err.splitlines()) <= 16


@pytest.mark.parametrize("command", [["generate", "Hello"], ["chat"]], ids=" ".join)
def test_a_syntax_error(clone: Clone, command: list[str]) -> None:
    (clone.exercises / GENERATION).write_text("def stream_generate(\n    model:: int):\n")
    code, out, err = speak(clone, *command, said="Hello\n")
    assert (code, out) == (1, "")
    assert "exercises/week1/generation.py has a syntax error on line 2: invalid syntax." in words(err)
    assert "model:: int):" in err
    assert "next       tinyllm-grade day1.6" in err


def test_ctrl_c_ends_the_reply(finished: Clone, endless: Path) -> None:
    process = begin(finished, "generate", "Hello", "--model", str(endless), "--max-tokens", "90000")
    assert process.stdout is not None
    start = process.stdout.read(len(TEXT))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert start == TEXT
    assert out.endswith("\n")
    assert re.search(r"tokens/s, stopped\n$", err)


def test_ctrl_c_ends_a_loop_that_runs_while_importing(clone: Clone) -> None:
    loop = "import pathlib\npathlib.Path('there').touch()\nwhile True: pass\n"
    (clone.exercises / GENERATION).write_text(loop)
    process = begin(clone, "generate", "Hello")
    end = time.monotonic() + SECONDS
    while not (clone.root / "there").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "stopped\n")


def test_the_child_dies_with_the_program(finished: Clone, endless: Path) -> None:
    process = begin(finished, "generate", "Hello", "--model", str(endless), "--max-tokens", "90000")
    assert process.stdout is not None
    process.stdout.read(1)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


USAGE = {
    ("generate",): "The prompt is empty.",
    ("generate", "-"): "The prompt is empty.",
    ("generate", "  "): "The prompt is empty.",
    ("generate", "x", "--raw", "--system", "y"): "--raw takes the prompt as it is",
    ("generate", "x", "--top-p", "0.9"): "--top-p needs --temp above 0",
    ("generate", "x", "--stop", ""): "--stop: an empty text would end every reply",
    ("generate", "x", "--engine", "week9"): "There is no engine called 'week9'. Engines: week1 cached",
    ("generate", "x", "--borrow", "9.9"): "There is no day called '9.9'",
    ("generate", "x", "--model", "nowhere"): "There is no folder nowhere",
    ("chat", "--max-tokens", "0"): "--max-tokens",
}


@pytest.mark.parametrize("arguments", USAGE)
def test_usage(finished: Clone, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(finished.root))
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2
    assert USAGE[arguments] in words(done.output)


def test_a_prompt_that_is_no_text(finished: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_ROOT", str(finished.root))
    done = CliRunner().invoke(main, ["generate", "-"], input=b"\xff\xfe")
    assert done.exit_code == 2
    assert "The prompt on stdin is not UTF-8 text." in done.output


def test_a_process_that_cannot_start(finished: Clone, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "mlx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')\n")
    code, out, err = speak(finished, "generate", "x", PYTHONPATH=str(tmp_path / "site"))
    assert (code, out) == (3, "")
    assert "could not start: ImportError: libmlx.so: cannot open shared object file" in words(err)
    assert "tinyllm-grade doctor" in err


# ---- the process, asked directly


@pytest.fixture(scope="module")
def speaker(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    """The reference on a small model, asked by several tests."""
    with speaker_on(finished, models.resolve(finished), solution="reference", seed=1) as speaker:
        yield speaker


def speaker_on(clone: Clone, model: models.Model, **options: object) -> Speaker:
    course = catalog.load(clone)
    return Speaker(clone, course, course.engines[0], model, **options)


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Piece))


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_a_turn_and_text_to_go_on_from(speaker: Speaker) -> None:
    events = list(speaker.ask(Ask(messages=turns("Hello"))))
    assert text_of(events) == TEXT
    assert not any("\ufffd" in e.text for e in events if isinstance(e, Piece))
    assert isinstance(events[-1], Done)
    assert events[-1].tokens == STEPS
    assert events[-1].per_second > 0
    (began,) = (e for e in events if isinstance(e, Began))
    assert (began.prompt_tokens, began.dropped, began.most) == (24, 0, small_models.CONTEXT - 24)
    assert text_of(list(speaker.ask(Ask(text="The q")))) == TEXT.removeprefix("The q")


def test_limits_and_stop_texts(speaker: Speaker) -> None:
    events = list(speaker.ask(Ask(messages=turns("Hello"), max_tokens=3)))
    assert (text_of(events), events[-1].tokens) == ("The", 3)
    assert text_of(list(speaker.ask(Ask(messages=turns("Hello"), stop=["zzz", "ui"])))) == "The q"


def test_drawn_tokens(speaker: Speaker) -> None:
    drawn = Ask(messages=turns("Hello"), temp=0.5, top_p=0.9, top_k=40, min_p=0.05)
    assert text_of(list(speaker.ask(drawn))) == TEXT


def test_what_cut_a_reply_is_in_its_figures(finished: Clone) -> None:
    _, out, err = speak(finished, "generate", "--max-tokens", "4", "--stop", "zz", "Hello")
    assert out == "The \n"
    assert "4 tokens (--max-tokens), first after" in err


def test_a_prompt_that_does_not_fit_leaves_the_process_as_it_was(speaker: Speaker) -> None:
    with pytest.raises(UsageError, match="The prompt has 200 tokens; this model takes at most 128, reply in"):
        list(speaker.ask(Ask(text="x" * 200)))
    assert text_of(list(speaker.ask(Ask(text="\n")))) == TEXT


def test_the_oldest_turns_are_dropped(speaker: Speaker) -> None:
    system = [{"role": "system", "content": "x"}]
    said = turns(*("a" * 20,) * 5)
    events = list(speaker.ask(Ask(messages=[*system, *said], max_tokens=20)))
    (began,) = (e for e in events if isinstance(e, Began))
    assert began.dropped == 4
    assert began.prompt_tokens < small_models.CONTEXT - 20
    assert text_of(events) == TEXT


def test_too_much_memory(clone: Clone, endless: Path) -> None:
    with speaker_on(clone, models.resolve(clone, str(endless))) as speaker:
        replies = speaker.ask(Ask(text="\n", max_tokens=90_000))
        next(e for e in replies if isinstance(e, Piece))
        speaker.memory_limit = 2**20
        with pytest.raises(
            NotSpoken, match=r"Used more than 0\.0 GiB of memory, and was stopped\."
        ) as caught:
            list(replies)
        assert caught.value.next_step == "tinyllm-grade day1.6   (Generating the response)"
        assert speaker.process is None


def test_a_crash(clone: Clone) -> None:
    write(clone, "import ctypes; ctypes.string_at(0)")
    with speaker_on(clone, models.resolve(clone)) as speaker, pytest.raises(NotSpoken) as caught:
        list(speaker.ask(Ask(text="\n")))
    assert "killed by a segmentation fault: C code touched memory" in caught.value.message
    assert "day1.6" in caught.value.next_step


def test_a_crash_in_an_import_and_a_file_that_is_gone(clone: Clone) -> None:
    model = models.resolve(clone)
    write(clone, "yield ''")
    (clone.exercises / GENERATION).write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with speaker_on(clone, model) as speaker:
        with pytest.raises(
            NotSpoken, match="While importing the modules: The process was killed by a kill sig"
        ):
            list(speaker.ask(Ask(text="\n")))
        (clone.exercises / GENERATION).unlink()
        with pytest.raises(NotSpoken, match=r"exercises/week1/generation\.py does not exist\.") as caught:
            list(speaker.ask(Ask(text="\n")))
        assert caught.value.next_step == "tinyllm-grade reset day1.6"


def test_a_loop_is_stopped_and_the_edited_file_is_run_next(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (clone.exercises / GENERATION).read_text()
    write(clone, "yield 'a'\nwhile True: pass")
    with speaker_on(clone, models.resolve(clone)) as speaker:
        replies = speaker.ask(Ask(text="\n"))
        next(e for e in replies if isinstance(e, Piece))
        replies.close()
        time.sleep(0.3)
        *_, done = speaker.stop()
        assert done.stopped[0].source == "while True: pass"
        assert speaker.process is not None
        deaf = "import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass"
        write(clone, f"yield 'b'\n{deaf}")
        speaker.end()
        replies = speaker.ask(Ask(text="\n"))
        next(e for e in replies if isinstance(e, Piece))
        time.sleep(0.3)
        monkeypatch.setattr(speaking, "GRACE_SECONDS", 0.3)
        assert not any(isinstance(e, Done) for e in speaker.stop())
        assert speaker.process is None  # it did not react
        assert list(speaker.stop()) == []
        (clone.exercises / GENERATION).write_text(before)
        assert text_of(list(speaker.ask(Ask(text="\n")))) == TEXT


def test_files_that_mlx_lm_refuses(clone: Clone) -> None:
    config = models.shipped(clone) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    refused = pytest.raises(EnvironmentFault, match="mlx-lm cannot load tiny-qwen2: ValueError: Received ")
    with speaker_on(clone, models.resolve(clone)) as speaker, refused:
        list(speaker.ask(Ask(text="\n")))


# ---- which engine


def test_the_default_engine(clone: Clone) -> None:
    file = clone.checkpoints / "course.toml"
    before, *engines = re.split(r"(?m)^(?=\[\[engines\]\])", file.read_text())
    first, after = engines[0], engines[-1].partition("\n\n")[2]
    after = re.sub(r"(?ms)^\[serving\].*?\n\n", "", after)  # it names engines that are gone
    course = catalog.load(clone)
    days = [day for day in course.days if not course.kernels([day])]  # nothing to be built
    listed = ", ".join(f'"{day.id}"' for day in days)
    later = re.sub("(?m)^days = .*", f"days = [{listed}]", first.replace('id = "week1"', 'id = "week2"'))
    file.write_text(f"{before}{first}{after}")
    assert speaking.default_engine(clone, catalog.load(clone), "exercises").id == "week1"
    file.write_text(f"{before}{first}{later}{after}")
    course = catalog.load(clone)
    assert speaking.default_engine(clone, course, "exercises").id == "week1"
    assert speaking.default_engine(clone, course, "reference").id == "week2"
    for day in days[:-1]:
        passed(clone, day)
    assert speaking.default_engine(clone, course, "exercises").id == "week1"
    passed(clone, days[-1])
    assert speaking.default_engine(clone, course, "exercises").id == "week2"
    file.write_text(f"{before}{after}")
    with pytest.raises(UsageError, match="no engine"):
        speaking.default_engine(clone, catalog.load(clone), "exercises")


def passed(clone: Clone, day: catalog.Day) -> None:
    """Log a pass of the day on its files as they are."""
    from tinyllm.grader import attempts
    from tinyllm.grader.files import content_hash
    from tinyllm.grader.report import CheckResult, DayReport, Outcome, TaskResult, Verdict

    tasks = tuple(
        TaskResult(
            t.id,
            t.title,
            t.checks,
            tuple(CheckResult(f"{t.id}-{n}", t.id, "c", Outcome.PASSED) for n in range(t.checks)),
        )
        for t in day.tasks
    )
    files = {f"exercises/{m}": content_hash(clone.exercises / m) for m in day.modules}
    report = DayReport(
        day.id, day.title, "exercises", tuple(files), (), None, tasks, Verdict.PASSED, 1.0, files
    )
    attempts.append(clone, attempts.attempt_event(report))


# ---- chat


def test_chat_by_pipe(finished: Clone) -> None:
    said = "Hello\n\n/help\n/nonsense\nAnd\\\nnow\n/reset\nOnce more\n/exit\nnot this\n"
    code, out, err = speak(finished, "chat", "--solution", "reference", "--system", "Be brief.", said=said)
    assert (code, out) == (0, f"{TEXT}\n" * 3)
    told = words(err)
    assert told.startswith("tiny-qwen2: 0.115 million parameters, float32, 464 kB Run by the reference, ")
    assert "Try: Tell me a story about Mia and a kite." in told
    assert "There is no command /nonsense. /reset" in told
    first, second, third = (int(n) for n in re.findall(r"(\d+) prompt tokens", err))
    assert second > first + len(TEXT)  # the conversation so far is in the prompt
    assert third == first + len("Once more") - len("Hello")  # and then it was forgotten


def test_chat_by_pipe_ends_with_the_first_fault(clone: Clone) -> None:
    write(clone, "yield 'a'\nyield 1 / 0")
    code, out, err = speak(clone, "chat", said="Hello\nHello\n")
    assert (code, out) == (1, "a\n")
    assert err.count("ZeroDivisionError: division by zero") == 1
    assert "Run by your code, engine week1" in err


class Terminal:
    """The program at a terminal of 80 columns."""

    def __init__(self, clone: Clone, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*GRADE, *arguments],
            env=environment(clone, TERM="xterm-256color", COLUMNS="80"),
            cwd=clone.root,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """What is printed from here until the pattern matches; it is not shown again."""
        end = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern} in: {self.seen}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {pattern}: {self.seen}") from None
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_chat_at_a_terminal(finished: Clone, endless: Path) -> None:
    terminal = Terminal(finished, "chat", "--model", str(endless), "--max-tokens", "90000")
    greeting = terminal.until(r"> ")
    assert "Run by your code, engine week1" in greeting
    terminal.type("Hello\n")
    terminal.until(TEXT)
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.until("> ")
    time.sleep(0.3)  # between its prompt and its first look at the keys readline misses a signal
    terminal.type("half a line\x03")
    terminal.until("ends the conversation")
    terminal.until("> ")
    terminal.type("Again\n")
    shown = terminal.until(TEXT)
    assert "loading" not in shown  # the process that was stopped goes on
    terminal.type("\x03")
    figures = terminal.until("stopped")
    assert int(re.findall(r"(\d+) prompt tokens", figures)[-1]) > 60  # the reply that was stopped counts
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    os.close(terminal.master)


def test_a_fault_at_a_terminal_leaves_the_conversation(clone: Clone) -> None:
    right = (clone.exercises / GENERATION).read_text()
    (clone.exercises / GENERATION).write_text("def stream_generate(*a, **b):\n    yield 1 / 0\n")
    terminal = Terminal(clone, "chat")
    terminal.until("> ")
    terminal.type("Hello\n")
    terminal.until("ZeroDivisionError")
    terminal.until("mend the file and ask again")
    (clone.exercises / GENERATION).write_text(right)
    terminal.until("> ")
    terminal.type("Hello\n")
    terminal.until(TEXT)
    terminal.until("> ")
    terminal.type("x" * 200 + "\n")
    assert "128" in terminal.until("reply included")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0
    os.close(terminal.master)


def test_doctor_looks_at_the_shipped_model(clone: Clone) -> None:
    def said() -> str:
        return words(speak(clone, "doctor")[1])

    assert "ok tiny-qwen2: 0.115 million parameters, float32, 464 kB" in said()
    (models.shipped(clone) / "config.json").unlink()
    text = said()
    assert "later tiny-qwen2: config.json is missing." in text
    assert "fix: Bring it back: git checkout -- reference/models/tiny-qwen2" in text


def test_seconds_running() -> None:
    code = "from tinyllm.grader.speaking import seconds_running as s; import time; a = s(); time.sleep(0.2)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; print(a, s())"], capture_output=True, text=True, check=True
    )
    first, second = map(float, done.stdout.split())
    assert 0 < first < 20
    assert 0.15 < second - first < 5
