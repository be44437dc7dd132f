"""`watch` from outside: a terminal with somebody who saves files and presses keys, and no terminal at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import watchfiles

from tinyllm.grader import saves
from tinyllm.grader import watching as watch_module
from tinyllm.grader.tests import toy
from tinyllm.grader.tests.toy import Toy
from tinyllm.grader.watching import Watch

READY = "waiting for a save"
RUNNING = "1 of 5"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE = 60.0  # on a machine that is busy with other things


@pytest.fixture
def course(tmp_path: Path) -> Toy:
    return toy.make(tmp_path / "my clone", git=True)


def attempts(course: Toy) -> list[dict]:
    log = course.clone.progress / "attempts.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == "attempt"]


class Terminal:
    """A terminal of 80 columns in which `watch` runs."""

    def __init__(self, course: Toy, *arguments: str, **environment: str) -> None:
        self.near, far = pty.openpty()
        self.size(40, 80)
        self.before = termios.tcgetattr(self.near)
        self.process = subprocess.Popen(
            [*toy.PROGRAM, "watch", *arguments],
            cwd=course.root,
            env=course.environment(**{"TERM": "xterm", **environment}),
            stdin=far,
            stdout=far,
            stderr=far,
            preexec_fn=self._own_terminal,
        )
        self._far = far  # kept open: its settings are asked for after the end
        self._unread = ""

    @staticmethod
    def _own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, words: str, *, within: float = PATIENCE) -> str:
        """What is shown up to these words and the end of the line that they begin, without colours."""
        end = time.monotonic() + within
        end_of_line = "" if words == RUNNING else "\n"  # the line of what runs is drawn over
        while not (found := re.search(rf".*?{re.escape(words)}[^\n]*{end_of_line}", self._unread, re.S)):
            assert time.monotonic() < end, f"no {words!r} in:\n{self._unread}"
            self._read(0.2)
        self._unread = self._unread[found.end() :]
        return ESCAPES.sub("", found.group()).replace("\r", "")

    def _read(self, wait: float) -> None:
        if select.select([self.near], [], [], wait)[0]:
            with contextlib.suppress(OSError):  # Linux says so when the other end is closed
                self._unread += os.read(self.near, 65536).decode("utf-8", "replace")

    def press(self, keys: str) -> None:
        os.write(self.near, keys.encode())

    def silence(self, seconds: float) -> None:
        """Nothing is shown for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.1)
        assert ESCAPES.sub("", self._unread).strip() == ""

    def end(self) -> int:
        """Wait for the end, and look at the terminal's settings."""
        limit = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < limit:
            self._read(0.05)
        code = self.process.wait(1)
        assert termios.tcgetattr(self.near)[:4] == self.before[:4]
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.near)
        os.close(self._far)


@contextlib.contextmanager
def watching(course: Toy, *arguments: str, **environment: str) -> Iterator[Terminal]:
    terminal = Terminal(course, *arguments, **environment)
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_day_from_its_stub_to_the_next_day(course: Toy) -> None:
    with watching(course, PAGER="cat") as terminal:
        opening = terminal.until(READY)
        assert "watching day1.1  Sums" in opening
        assert "day1.1: not passed yet, 0 of 2 tasks" in opening
        assert "h hint  d diff  r read  n next  l list  q quit" in opening

        course.sums(row_sums="return mx.sum(x, axis=0)")
        wrong = terminal.until(READY)
        assert "expected   mx.array (3,) float32" in wrong
        assert "day1.1: not passed yet, 1 of 2 tasks" in wrong

        terminal.press("h")
        assert "hint 1/3   Which axis?" in terminal.until(READY)
        terminal.press("d")  # once: only asked
        assert "reference's task 2 beside yours" in terminal.until("once more")
        terminal.press("x")  # any other key is a no
        terminal.press("d")
        terminal.until("once more")
        terminal.press("d")
        assert "return mx.sum(x, axis=1)" in terminal.until(READY)
        terminal.press("n")
        assert "has not passed yet" in terminal.until("once more")
        terminal.press("r")
        assert "double keeps its input's dtype." in terminal.until(READY)
        terminal.press("l")
        assert "1.2  Means" in terminal.until(READY)
        terminal.press("?")
        terminal.until("so does Ctrl-C")

        terminal.size(50, 100)  # a resize is nothing to it
        course.sums()
        right = terminal.until(READY)
        assert "day1.1: passed" in right
        assert "You add." in right
        assert "double keeps its input's dtype." in right
        assert re.search(r"3 attempts, .*, 1 hint, the reference looked at", right)
        assert "n goes on to day1.2, Means." in right

        terminal.press("n")
        assert "watching day1.2  Means" in terminal.until(READY)
        course.write("exercises/week1/means.py", toy.MEANS)
        last = terminal.until(READY)
        assert "day1.2: passed" in last
        assert "That was the last day so far." in last
        terminal.press("q")
        assert terminal.end() == 0
    drawn_over = re.compile("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")  # the line of what runs
    lines = [line for line in (opening + wrong).splitlines() if not drawn_over.search(line)]
    assert max(map(len, lines)) <= 80
    verdicts = [(a["day"], a["verdict"]) for a in attempts(course)]
    assert verdicts == [
        ("1.1", "not passed"),
        ("1.1", "not passed"),
        ("1.1", "passed"),
        ("1.2", "not passed"),
        ("1.2", "passed"),
    ]
    assert "- [x]" in (course.clone.progress / "tiny-llm-tracker.md").read_text(encoding="utf-8")


def test_ways_to_save(course: Toy) -> None:
    file = course.clone.exercises / "week1/sums.py"
    course.sums()
    right = file.read_bytes()
    course.grade("day1.1")
    with watching(course, "day1.1", "--keep", NO_COLOR="1") as terminal:
        assert "day1.1: passed" in terminal.until(READY)
        assert len(attempts(course)) == 1  # these very files had been graded

        file.write_bytes(right)  # saved without a change
        file.touch()
        (file.parent / ".sums.py.swp").write_bytes(b"an editor's own")
        terminal.silence(2.0)

        file.write_bytes(right.replace(b"x + x", b"x +"))  # half-way through
        assert "syntax error on line 9" in terminal.until(READY)
        backup = file.with_name("sums.py~")
        file.rename(backup)  # as an editor does it: the old file away, a new one in its place
        new = file.with_name("4913")
        new.write_bytes(right.replace(b"x + x", b"x * x"))
        new.replace(file)
        backup.unlink()
        renamed = terminal.until(READY)
        assert "0 of 3 checks" in renamed
        assert "does not exist" not in renamed

        file.unlink()
        assert "exercises/week1/sums.py does not exist" in terminal.until(READY)
        file.write_bytes(right)
        assert "day1.1: passed" in terminal.until(READY)
        course.write("exercises/week1/means.py", "# not this day's\n")
        terminal.until("tinyllm-grade watch day1.2")
        terminal.press("g")
        assert "not another attempt" in terminal.until(READY)
        terminal.press("\x04")
        assert terminal.end() == 0
    verdicts = [a["verdict"] for a in attempts(course)]
    assert verdicts == ["passed", "not passed", "not passed", "not passed", "passed"]


def test_an_edit_during_a_grading_starts_it_anew(course: Toy) -> None:
    course.sums()
    course.grade("day1.1")
    with watching(course, "day1.1", "--keep") as terminal:
        terminal.until(READY)
        course.sums(top="import time", double="time.sleep(2.5)\n    return x + x")
        terminal.until(RUNNING)
        course.sums(double="return x * x")
        shown = terminal.until(READY)
        assert "saved again" in shown
        assert "0 of 3 checks" in shown
        assert len(attempts(course)) == 2
        course.sums(double="while True: pass")
        terminal.until(RUNNING)
        terminal.press("q")
        assert terminal.end() == 0
    assert len(attempts(course)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="forked from a warm process on Linux only")
def test_the_process_of_the_next_grading_waits_for_the_save(course: Toy) -> None:
    with watching(course) as terminal:
        for turn in ("first", "second"):
            terminal.until(READY)
            end = time.monotonic() + PATIENCE
            waiting: list[psutil.Process] = []
            while len(waiting) < 2:  # the warm process and a fork of it
                assert time.monotonic() < end
                time.sleep(0.02)
                children = psutil.Process(terminal.process.pid).children()
                waiting = [p for p in children if "tinyllm.grader.warm_child" in _command(p)]
            course.sums(row_sums=f"import os\n    print('{turn} in', os.getpid())\n    return x")
            ran = re.search(rf"{turn} in (\d+)", terminal.until(f"{turn} in"))
            assert ran is not None
            assert int(ran[1]) in {p.pid for p in waiting}


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def searches(process: psutil.Process) -> bool:
    """Whether it is a child that looks for likely mistakes, and still runs."""
    try:
        return "tinyllm.grader.likely_child" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def test_a_save_cuts_the_search_for_likely_mistakes_off(course: Toy, tmp_path: Path) -> None:
    """The one mistake that it tries never ends, and leaves a file as it begins."""
    begun = tmp_path / "begun"
    endless = f"[__import__('pathlib').Path('{begun}').touch(), [0 for _ in iter(int, 1)]]"
    spec = toy.DAY_1.replace('replace = "x * x"', f'replace = "{endless}"')
    course.write("checkpoints/day1_1/checkpoint.toml", spec)
    with watching(course, "day1.1", "--keep") as terminal:
        terminal.until(READY)
        course.sums(double="return x * 3")
        assert "day1.1: not passed yet" in terminal.until("1 of 2 tasks")
        end = time.monotonic() + PATIENCE
        while not begun.exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert begun.exists()
        course.sums()
        shown = terminal.until(READY)
        assert "saved again" in shown
        assert "day1.1: passed" in shown
        running = psutil.Process(terminal.process.pid).children(recursive=True)
        assert not any(searches(process) for process in running)
        terminal.press("q")
        assert terminal.end() == 0
    assert [a["verdict"] for a in attempts(course)] == ["not passed", "not passed", "passed"]


@pytest.mark.parametrize("how", ["key", "terminated", "while grading"])
def test_however_it_ends_the_terminal_is_as_it_was(course: Toy, how: str) -> None:
    course.sums(double="while True: pass" if how == "while grading" else "return x + x")
    with watching(course, "day1.1") as terminal:
        terminal.until(RUNNING if how == "while grading" else READY)
        if how == "terminated":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            terminal.press("\x03")
        assert terminal.end() == (143 if how == "terminated" else 130)


@pytest.mark.parametrize("options", [("--poll",), ()], ids=["polling", "events"])
def test_without_a_terminal_saves_are_graded_until_the_day_passes(course: Toy, options: tuple) -> None:
    with subprocess.Popen(
        [*toy.PROGRAM, "watch", "day1.1", *options],
        cwd=course.root,
        env=course.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line.rstrip("\n"))
            if line.startswith("day1.1: not passed yet, 0 of 2"):
                course.sums(double="return x * x")
            elif line.startswith("day1.1: not passed yet, 1 of 2"):
                course.sums()
        assert process.wait(PATIENCE) == 0
    text = "\n".join(shown)
    assert "There is no terminal here" in text
    assert ("looking five times a second: --poll" in text) == bool(options)
    assert "day1.1: passed" in text
    assert "next: tinyllm-grade watch day1.2" in text
    assert "\x1b" not in text
    assert max(map(len, shown)) <= 80


def test_changes_that_no_event_tells_of_are_found(course: Toy, tmp_path: Path) -> None:
    """A link out of the clone stands for a file system without events: its target changes unseen."""
    file = course.clone.exercises / "week1/sums.py"
    elsewhere = tmp_path / "elsewhere.py"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with watching(course, "day1.1", "--keep") as terminal:
        terminal.until(READY)
        elsewhere.write_text(toy.SUMS, encoding="utf-8")
        shown = terminal.until(READY)
        assert "looking five times a second" in shown
        assert "day1.1: passed" in shown
        terminal.press("q")
        assert terminal.end() == 0


def test_file_systems_without_events_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Mount:
        def __init__(self, mountpoint: str, fstype: str) -> None:
            self.mountpoint, self.fstype = mountpoint, fstype

    for kind, poll in (("9p", True), ("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)):
        mounts = [Mount("/", "overlay"), Mount(str(tmp_path), kind), Mount(str(tmp_path / "other"), "9p")]
        monkeypatch.setattr(psutil, "disk_partitions", lambda all, mounts=mounts: mounts)
        assert saves.without_events(tmp_path / "exercises") == (kind if poll else "")


class Told:
    """A screen that keeps the notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def bare(course: Toy, screen: Any = None) -> Watch:
    """A Watch of day 1.1 that does not run."""
    day = course.course.day("1.1")
    return Watch(course.clone, course.course, day, screen=screen, listener=None, keyboard=None, command=None)


def test_where_the_system_refuses_to_watch_files_are_polled(
    course: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Linux when max_user_watches are used up."""
    real = watchfiles.watch

    def refuse(*arguments: Any, force_polling: bool | None, **options: Any) -> Iterator[set]:
        if not force_polling:
            raise OSError("no space left on device")
        return real(*arguments, force_polling=True, **options)

    monkeypatch.setattr(watchfiles, "watch", refuse)
    screen = Told()
    watch = bare(course, screen)
    watch.saves = saves.Saves(course.clone.exercises, poll=False)
    assert select.select([watch.saves], [], [], PATIENCE)[0]
    watch._look_after_events(True)
    try:
        (said,) = screen.notices
        assert said.startswith(
            "looking five times a second: the system tells of no changes (OSError: no space"
        )
        end = time.monotonic() + PATIENCE
        while not watch.saves.up and time.monotonic() < end:
            time.sleep(0.05)
        course.sums()
        assert select.select([watch.saves], [], [], PATIENCE)[0]
        assert watch.saves.take() == {course.clone.exercises / "week1/sums.py"}
    finally:
        watch.saves.close()


def test_tasks_are_dealt_by_the_time_that_their_checks_took(
    course: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_processors", lambda: 2)
    watch = bare(course)
    watch.warm = SimpleNamespace(forks=True)
    assert watch._shares() == []  # nothing has been timed
    for seconds, shares in (
        ((0.2, 0.3, 0.6, 0.4), [{"c", "a"}, {"d", "b"}]),
        ((0.1, 9.0, 0.1, 0.1), [{"b"}, {"a", "c", "d"}]),
        ((0.01, 0.02, 0.03, 0.04), []),  # a second child would cost more than it saves
    ):
        watch.report = SimpleNamespace(
            tasks=[timed({id_: s}) for id_, s in zip("abcd", seconds, strict=True)]
        )
        assert watch._shares() == shares
    watch.report = SimpleNamespace(tasks=[timed({"a": 5.0, "b": 4.0})])  # one long task is cut
    assert watch._shares() == [{"a"}, {"b"}]
    watch.report = SimpleNamespace(tasks=[timed({"a[1]": 5.0, "a[2]": 4.0})])  # but not a test function
    assert watch._shares() == [{"a[1]", "a[2]"}]
    watch.warm = SimpleNamespace(forks=False)
    assert watch._shares() == []


def timed(seconds: dict[str, float]) -> SimpleNamespace:
    """A task, by how long its checks took."""
    return SimpleNamespace(checks=[SimpleNamespace(id=id_, seconds=s) for id_, s in seconds.items()])


def test_no_folder_to_watch_is_told(course: Toy) -> None:
    course.clone.exercises.rename(course.root / "gone")
    done = course.grade("watch", "day1.1")
    assert done.returncode == 3
    assert "tinyllm-grade reset day1.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_long_task_is_cut_between_test_functions() -> None:
    seconds = {"a[1]": 1.0, "a[2]": 1.0, "b": 2.0, "c[1]": 3.0, "c[2]": 1.0}
    assert watch_module._cut(list(seconds), seconds, 4.0) == [["a[1]", "a[2]", "b"], ["c[1]", "c[2]"]]
    assert watch_module._cut(list(seconds), seconds, 8.0) == [list(seconds)]
    assert watch_module._cut(["a[1]", "a[2]"], seconds, 0.5) == [["a[1]", "a[2]"]]
