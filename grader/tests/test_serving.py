"""serve and bench serve from outside: real processes, sockets and OpenAI's client, on a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tinyllm.grader import load, models, serving
from tinyllm.grader.bench.workshop import GRADE, finished_copy
from tinyllm.grader.clone import Clone, installed_root
from tinyllm.grader.tests import small_models, toy
from tinyllm.grader.tests.small_models import TEXT

SECONDS = 60


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose exercises are done, with a small model in tiny-qwen2's place."""
    clone = finished_copy(Clone(installed_root()), tmp_path_factory.mktemp("clones") / "my clone")
    small_models.write(models.shipped(clone), max_position_embeddings=1000)
    return clone


class Run:
    """A running `tinyllm-grade`, whose output can be waited for."""

    def __init__(self, clone: Clone, *arguments: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [*GRADE, *arguments],
            env=toy.Toy(clone).environment(**more),
            cwd=clone.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.text = ""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)

    def wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if found := re.search(pattern, self.text):
                return found
            with contextlib.suppress(queue.Empty):
                self.text += self._lines.get(timeout=0.1)
        raise AssertionError(f"no {pattern!r} in: {self.text}")

    def end(self) -> tuple[int, str]:
        """(exit code, everything printed)."""
        code = self.process.wait(SECONDS)
        time.sleep(0.1)
        while not self._lines.empty():
            self.text += self._lines.get()
        assert "Traceback" not in self.text
        return code, self.text


@contextlib.contextmanager
def running(clone: Clone, *arguments: str, **more: str) -> Iterator[Run]:
    run = Run(clone, *arguments, **more)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait()


def post(port: int, body: dict[str, object], **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


SERVE = ("serve", "--solution", "reference", "--engine", "cached", "--port", "0")


def test_served_and_ended(clone: Clone) -> None:
    with running(clone, *SERVE, TINYLLM_API_KEY="sesame") as run:
        port = int(run.wait_for(r"Serving on http://127\.0\.0\.1:(\d+)/v1")[1])
        assert "Authorization: Bearer KEY" in run.wait_for(r"curl.*\n.*\n")[0]
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame", timeout=SECONDS, max_retries=0
        )
        options = {"model": "tiny-qwen2", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
        whole = client.chat.completions.create(**options)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (TEXT, "stop")
        pieces = [
            c.choices[0].delta.content or "" for c in client.chat.completions.create(**options, stream=True)
        ]
        assert "".join(pieces) == TEXT
        assert len([p for p in pieces if p]) == len(TEXT), "a piece for each character"
        drawn = [
            client.completions.create(
                model="tiny-qwen2", prompt="\n", temperature=1.5, seed=5, max_tokens=9, logprobs=1
            ).choices[0]
            for _ in range(2)
        ]
        assert drawn[0] == drawn[1], "the seed decides"
        assert len(drawn[0].logprobs.tokens) <= 9
        with pytest.raises(openai.BadRequestError, match="room"):
            client.completions.create(model="tiny-qwen2", prompt="long " * 200, max_tokens=5)
        assert post(port, {}, Authorization="Bearer wrong")[0] == 401
        environ = Path(f"/proc/{run.process.pid}/cmdline")
        assert not environ.exists() or b"sesame" not in environ.read_bytes()
        run.process.send_signal(signal.SIGINT)
        code, text = run.end()
        assert code == 0, text
        assert "Ended." in text
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken(clone: Clone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(clone, *SERVE[:-1], str(port)) as run:
            code, text = run.end()
    assert code == 2, text
    assert f"port {port}" in text
    assert "--port 0" in text


def test_a_day_that_is_not_written(clone: Clone, tmp_path: Path) -> None:
    root = tmp_path / "stub"
    stub = finished_copy(Clone(clone.root), root)
    small_models.write(models.shipped(stub))
    theirs = Clone(installed_root()).exercises / "week2/engine_thread.py"
    (stub.exercises / "week2/engine_thread.py").write_text(theirs.read_text())
    with running(stub, "serve", "--engine", "cached", "--port", "0") as run:
        code, text = run.end()
    assert code == 1, text
    assert "Day 2.8, task 3 (The engine's thread) is not written yet." in text
    assert "--borrow 2.8" in text


def test_a_step_that_raises(clone: Clone, tmp_path: Path) -> None:
    wrong = finished_copy(Clone(clone.root), tmp_path / "wrong")
    small_models.write(models.shipped(wrong))
    file = wrong.exercises / "week2/engine.py"
    source = file.read_text()
    line = "        plan = self.scheduler.plan()\n"
    assert source.count(line) == 1
    file.write_text(source.replace(line, line + "        lost = {}[plan.step]\n"))
    with running(wrong, "serve", "--engine", "cached", "--port", "0") as run:
        port = int(run.wait_for(r"127\.0\.0\.1:(\d+)/v1")[1])
        status, answer = post(port, {"model": "tiny-qwen2", "prompt": "hi", "max_tokens": 3})
        assert (status, answer["error"]["code"]) == (500, "engine_failed")
        code, text = run.end()
    assert code == 1, text
    assert "lost = {}[plan.step]" in text, "the line is shown"
    assert "exercises/week2/engine.py" in text


def test_bench_serve(clone: Clone) -> None:
    arguments = ("--solution", "reference", "--engine", "cached", "--seconds", "1", "--json")
    with running(clone, "bench", "serve", *arguments) as run:
        code, text = run.end()
    found = json.loads(text)
    assert (code, found["exit_code"], found["error"]) == (0, 0, ""), text
    counts = {c["title"]: c["value"] for c in found["counts"]}
    assert counts["completed replies other than alone"] == 0
    assert counts["requests completed"] >= 64
    assert counts["requests that were hung up on"] > 0
    assert counts["requests left in hand, waiting or active in the engine, at the end"] == 0


def test_engines_without_a_cache_are_refused(clone: Clone) -> None:
    with running(clone, "serve", "--engine", "week1") as run:
        code, text = run.end()
    assert code == 2
    assert "cached, packed, flash" in text


def test_private_addresses() -> None:
    assert all(map(serving.is_private, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(serving.is_private, ("0.0.0.0", "::", "192.168.1.5", "example.org")))
    assert serving.Serving("::1", 80).url == "http://[::1]:80"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", "status HTTP/1.1 429 Too Many Requests"),
        (b"", "status missing"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "gone"}}\n\n', "error event: gone"),
        (
            b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "a", "finish_reason": null}]}\n\n',
            "the stream ended without a finish_reason or [DONE]",
        ),
        (
            b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\n',
            "the stream ended without a finish_reason or [DONE]",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {\n\n", "JSONDecodeError"),
    ],
)
def test_clients_see_what_is_wrong(answer: bytes, problem: str) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scene() -> load.Asked:
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await load.ask("127.0.0.1", port, {"prompt": "x"})

    asked = asyncio.run(scene())
    assert problem in asked.problem
    assert not asked.completed
