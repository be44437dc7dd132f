"""Day 2.8, the thread and the server, with a made-up engine whose replies can be told in advance.

FakeEngine has the interface of day 2.7's Engine and no model: a reply depends on all of its prompt, so that
one mixed up with another's is seen. It can be held, so that a check decides when it goes on, and it notes
what it is asked, and in which thread.

The server runs under uvicorn, on a free port of this machine, in a thread; clients are OpenAI's own and plain
sockets. Whatever is waited for has a limit of LIMIT seconds, after which the check fails.
"""

import asyncio
import contextlib
import functools
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field

from tinyllm.grader.testing import check, task

LIMIT = 4.0  # seconds for anything that is waited for; what is right takes milliseconds
HOST = "127.0.0.1"
LONGEST = 400  # tokens in a prompt that the fake engine takes


# ---- the engine ----


class FakeTokenizer:
    has_chat_template = True

    def __len__(self):
        return 10_000

    def decode(self, tokens):
        return "".join(map(chr, tokens))

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, enable_thinking):
        if tokenize or not add_generation_prompt or enable_thinking:
            raise ValueError("the chat template was given other options")
        if any(m["content"] == "no template for this" for m in messages):
            raise ValueError("roles must alternate")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def chat_prompt(*contents):
    messages = [{"role": "user", "content": text} for text in contents]
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return FakeTokenizer().apply_chat_template(messages, **options)


def script(prompt, count):
    """The reply to a prompt: (token, the text that goes out with it). Every fourth text waits."""
    state, made, held = sum((i + 1) * t for i, t in enumerate(prompt)), [], ""
    for number in range(count):
        state = (state * 31 + 7) % 1_000_003
        token = ord("€") if number % 5 == 3 else ord("a") + state % 26
        held += chr(token)
        waits = number % 4 == 2 and number < count - 1
        made.append((token, "" if waits else held))
        held = held if waits else ""
    return made


def reply_to(prompt, count):
    """The text of the reply."""
    prompt = [ord(c) for c in prompt] if isinstance(prompt, str) else list(prompt)
    return "".join(text for _, text in script(prompt, count))


@dataclass
class Sampled:
    token: int
    logprob: float
    top: tuple = ()


@dataclass
class Event:
    id: int
    text: str
    tokens: tuple = ()
    logprobs: tuple = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0


@dataclass
class Going:
    """A request that the fake engine is serving."""

    prompt: list
    settings: object
    left: list
    count: int = 0


class FakeEngine:
    """One token for each request and step. `allowed` is how many steps may still be made; None is any."""

    def __init__(self, slots=4):
        self.tokenizer = FakeTokenizer()
        self.slots = slots
        self.going, self.ended = {}, []
        self.threads, self.submitted, self.cancelled = set(), [], []
        self.allowed, self.breaks, self.step_seconds = None, None, 0.0
        self.steps = self.asked = 0

    def note(self):
        self.threads.add(threading.get_ident())

    @property
    def has_work(self):
        self.asked += 1
        return bool(self.going or self.ended)

    @property
    def waiting_count(self):
        return max(0, len(self.going) - self.slots)

    @property
    def active_count(self):
        return min(len(self.going), self.slots)

    def submit(self, prompt, settings):
        self.note()
        if prompt == "raise":
            raise RuntimeError("the engine does not like this one")
        tokens = [ord(c) for c in prompt] if isinstance(prompt, str) else list(prompt)
        if len(tokens) > LONGEST:
            raise ValueError(f"the prompt has {len(tokens)} tokens, and there is room for {LONGEST}")
        self.submitted.append((prompt, settings))
        id = len(self.submitted) + 100
        self.going[id] = Going(tokens, settings, script(tokens, settings.max_tokens))
        return id

    def cancel(self, id):
        self.note()
        self.cancelled.append(id)
        if self.going.pop(id, None) is not None:
            self.ended.append(Event(id, "", finish_reason="cancelled"))

    def step(self):
        self.note()
        if self.breaks is not None:
            raise self.breaks
        events, self.ended = self.ended, []
        if self.allowed == 0:
            time.sleep(0.001)
            return events
        if self.allowed is not None:
            self.allowed -= 1
        self.steps += 1
        time.sleep(self.step_seconds)
        for id, one in list(self.going.items())[: self.slots]:
            token, text = one.left[one.count]
            one.count += 1
            top = tuple((ord("x") + k, -1.0 - k) for k in range(one.settings.logprobs))
            last = one.count == len(one.left)
            reason = "length" if last else None
            for stop in one.settings.stop:
                if stop in text:
                    text, reason = text[: text.index(stop)], "stop"
            if reason:
                del self.going[id]
            sampled = (Sampled(token, -token / 128, top),)
            events.append(Event(id, text, (token,), sampled, reason, len(one.prompt)))
        return events


# ---- waiting ----


def eventually(condition, what, fact=""):
    """Wait until a condition holds; the check fails if it never does."""
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    check.exact(bool(condition()), True, what=f"whether, within {LIMIT:.0f} s, {what}", fact=fact)


def play(scene, what):
    """Run a coroutine function in an event loop of its own; its result. Stuck or blocked, the check fails."""
    done = {}

    async def limited():
        done["value"] = await asyncio.wait_for(scene(), LIMIT)

    def run():
        try:
            asyncio.run(limited())
        except BaseException as error:
            done["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT + 1)
    if isinstance(done.get("error"), TimeoutError):
        done = {}
    if "error" in done:
        raise done["error"]
    check.exact("value" in done, True, what=f"whether this comes to its end within {LIMIT:.0f} s: {what}")
    return done["value"]


async def outcome(awaitable):
    """The name of the exception that comes, and its text; or the result."""
    try:
        return await awaitable
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


def settings(solution, **given):
    return solution.Settings(**{"max_tokens": 6, **given})


async def started(solution, engine, queue_limit=64):
    thread = solution.EngineThread(engine, queue_limit)
    await thread.start()
    return thread


async def pieces_of(stream):
    return [piece async for piece in stream]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


# ---- task 3: the thread ----


@task(3)
def test_replies(solution):
    """the thread: seven requests at once, each with its own pieces"""
    prompts = ["a", "bb", "once upon", "é€", "zz", (5, 6, 7), "a"]

    async def scene():
        thread = await started(solution, FakeEngine())
        streams = [
            await thread.submit(prompt, settings(solution, max_tokens=5 + n))
            for n, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*map(pieces_of, streams)), thread.in_hand

    got, in_hand = play(scene, "seven requests, each stream read to its end")
    for number, (prompt, pieces) in enumerate(zip(prompts, got, strict=True)):
        what = f"request {number} of seven, prompt {prompt!r}, max_tokens {5 + number}"
        check.exact(text_of(pieces), reply_to(prompt, 5 + number), what=f"text of {what}", fact="stream")
        counts = [(p.tokens, p.prompt_tokens) for p in pieces]
        want = [(1, len(prompt))] * (5 + number)
        check.exact(counts, want, what=f"(tokens, prompt_tokens) of the pieces of {what}", fact="stream")
        reasons = [p.finish_reason for p in pieces]
        check.exact(reasons, [None] * (4 + number) + ["length"], what=f"finish_reason, {what}", fact="stream")
    check.exact(in_hand, 0, what="in_hand after seven replies", fact="in-hand")


@task(3)
def test_one_thread(solution):
    """the thread: the engine is made and used in one thread, and not in the loop's"""
    made = []

    def make():
        engine = FakeEngine()
        engine.note()
        made.append(engine)
        return engine

    async def scene():
        thread = await started(solution, make)
        await pieces_of(await thread.submit("a", settings(solution)))
        stream = await thread.submit("b", settings(solution, max_tokens=5000))
        stream.cancel()
        await until(lambda: made[0].cancelled)
        return thread.state, thread.engine is made[0], threading.get_ident() in made[0].threads

    state, same, in_loop = play(scene, "a request, and one that is cancelled")
    check.exact((state, same), ("running", True), what="(state, engine is the one made)", fact="start")
    threads = len(made[0].threads)
    check.exact(
        threads, 1, what="threads in which the engine was made, given requests, run", fact="one-thread"
    )
    check.exact(in_loop, False, what="whether that is the event loop's thread", fact="one-thread")

    def broken():
        raise ValueError("no weights")

    got = play(lambda: outcome(solution.EngineThread(broken, 4).start()), "start with an engine that fails")
    check.exact(
        got, "ValueError: no weights", what="what start raises where making the engine does", fact="start"
    )


@task(3)
def test_loop_goes_on(solution):
    """the thread: while the engine computes, the event loop goes on"""

    async def scene():
        engine = FakeEngine()
        engine.step_seconds = 0.15
        thread = await started(solution, engine)
        reading = asyncio.ensure_future(pieces_of(await thread.submit("a", settings(solution, max_tokens=2))))
        other = asyncio.ensure_future(thread.submit("b", settings(solution, max_tokens=1)))
        turns = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            turns += 1
        await (await other).arrived.get()
        return turns

    turns = play(scene, "a reply of two steps of 0.15 s, and another request")
    what = f"whether the loop had 5 turns or more in 0.3 s of computing (it had {turns})"
    check.exact(turns >= 5, True, what=what, fact="loop-free")


@task(3)
def test_pieces_come_at_once(solution):
    """the thread: a piece comes when its step is done, not when the reply is"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 2
        thread = await started(solution, engine)
        stream = await thread.submit("abc", settings(solution))
        reading = stream.__aiter__()
        first = [(await reading.__anext__()).text, (await reading.__anext__()).text]
        steps, engine.allowed = engine.steps, None
        return first, steps, [piece.text async for piece in reading]

    first, steps, rest = play(scene, "two pieces of six, then the others")
    want = [text for _, text in script(list(b"abc"), 6)]
    check.exact((first, steps), (want[:2], 2), what="the first pieces, after 2 steps", fact="stream")
    check.exact(rest, want[2:], what="the pieces after them", fact="stream")


@task(3)
def test_logprobs_become_text(solution):
    """the thread: tokens become text where log-probabilities are asked for"""

    async def scene():
        thread = await started(solution, FakeEngine())
        asked = await thread.submit("ab", settings(solution, max_tokens=4, logprobs=2), True)
        plain = await thread.submit("ab", settings(solution, max_tokens=4))
        return await pieces_of(asked), await pieces_of(plain)

    asked, plain = play(scene, "two requests, one with log-probabilities")
    tokens = [token for token, _ in script(list(b"ab"), 4)]
    want = [[(chr(t), -t / 128, (("x", -1.0), ("y", -2.0)))] for t in tokens]
    got = [[(t.text, t.logprob, t.top) for t in piece.logprobs] for piece in asked]
    check.exact(got, want, what="(text, logprob, top) of the tokens of each piece", fact="piece-logprobs")
    got = [piece.logprobs for piece in plain]
    check.exact(got, [()] * 4, what="logprobs of pieces that were not asked for any", fact="piece-logprobs")


@task(3)
def test_queue_limit(solution):
    """the thread: a burst of requests, and as many are taken as the limit says"""

    async def scene():
        engine = FakeEngine(slots=2)
        engine.allowed = 0
        thread = await started(solution, engine, 3)
        burst = await asyncio.gather(*(outcome(thread.submit("ab", settings(solution))) for _ in range(8)))
        streams = [s for s in burst if isinstance(s, solution.Stream)]
        refused = [s for s in burst if not isinstance(s, solution.Stream)]
        held = thread.in_hand
        at_most = thread.figures
        engine.allowed = None
        texts = [text_of(await pieces_of(stream)) for stream in streams]
        after = await thread.submit("ab", settings(solution))
        texts.append(text_of(await pieces_of(after)))
        return len(streams), refused, held, at_most, texts, thread.in_hand, len(engine.submitted)

    taken, refused, held, _, texts, left, submitted = play(scene, "eight requests where three are taken")
    check.exact(taken, 3, what="requests taken of 8 at once, queue_limit 3", fact="busy")
    check.exact(refused, ["Busy: "] * 5, what="what the others raised", fact="busy")
    check.exact((held, left), (3, 0), what="in_hand with three taken, and at the end", fact="in-hand")
    check.exact(texts, [reply_to("ab", 6)] * 4, what="the replies, with one asked for later", fact="busy")
    check.exact(submitted, 4, what="requests that the engine was given", fact="busy")


@task(3)
def test_cancel(solution):
    """the thread: a request is cancelled in the middle, the other goes on"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 3
        thread = await started(solution, engine)
        one = await thread.submit("one", settings(solution, max_tokens=3000))
        two = await thread.submit("two", settings(solution, max_tokens=30))
        await until(lambda: engine.allowed == 0)
        one.cancel()
        in_hand = thread.in_hand
        one.cancel()
        await until(lambda: engine.cancelled)
        count = one.arrived.qsize()
        engine.allowed = None
        text = text_of(await pieces_of(two))
        two.cancel()  # it has ended
        await pieces_of(await thread.submit("three", settings(solution)))
        return in_hand, one.arrived.qsize() - count, text, engine.cancelled, thread.in_hand, len(engine.going)

    in_hand, later, text, cancelled, left, going = play(scene, "two requests, one of them cancelled")
    check.exact(in_hand, 1, what="in_hand as soon as one of two was cancelled", fact="in-hand")
    check.exact(cancelled, [101], what="ids that the engine was told to cancel", fact="cancel")
    check.exact(later, 0, what="pieces that arrived for it afterwards", fact="cancel")
    check.exact(text, reply_to("two", 30), what="the reply of the other", fact="cancel")
    check.exact((left, going), (0, 0), what="requests in hand, and in the engine, at the end", fact="cancel")


@task(3)
def test_caller_gone_while_submitting(solution):
    """the thread: a caller that is cancelled inside submit leaves nothing behind"""

    async def scene():
        engine = FakeEngine()
        engine.step_seconds = 0.1
        thread = await started(solution, engine)
        first = await thread.submit("first", settings(solution, max_tokens=4))
        await until(lambda: engine.steps == 1)  # it is in a step, for a while
        waiting = asyncio.ensure_future(thread.submit("second", settings(solution, max_tokens=3000)))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait({waiting})
        in_hand = thread.in_hand
        await pieces_of(first)
        engine.step_seconds = 0.0
        await pieces_of(await thread.submit("third", settings(solution)))
        return waiting.cancelled(), in_hand, thread.in_hand, len(engine.going)

    got = play(scene, "a submit that is cancelled while the engine computes")
    what = "(submit was cancelled, in_hand then, in_hand at the end, requests left in the engine)"
    check.exact(got, (True, 1, 0, 0), what=what, fact="submit-gone")


@task(3)
def test_refused(solution):
    """the thread: a request that the engine refuses, and one at which it raises"""

    async def scene():
        thread = await started(solution, FakeEngine())
        other = await thread.submit("other", settings(solution))
        got = [await outcome(thread.submit(p, settings(solution))) for p in ("x" * 500, "raise")]
        return got, text_of(await pieces_of(other)), thread.in_hand, thread.state

    got, text, in_hand, state = play(scene, "a prompt that is too long, and one at which the engine raises")
    long = "Refused: the prompt has 500 tokens, and there is room for 400"
    check.exact(got[0], long, what="what submit raises for a prompt that does not fit", fact="submit-raises")
    failed = got[1].partition(":")[0] if isinstance(got[1], str) else got[1]
    check.exact(failed, "EngineFailed", what="what it raises for another exception", fact="submit-raises")
    left = text, in_hand, state
    want = reply_to("other", 6), 0, "running"
    check.exact(left, want, what="(another reply, in_hand, state) after both", fact="submit-raises")


@task(3)
def test_step_fails(solution):
    """the thread: an exception in a step reaches everybody, and is not forgotten"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 1
        thread = await started(solution, engine)
        streams = [await thread.submit(p, settings(solution)) for p in ("a", "b")]
        await until(lambda: engine.allowed == 0)
        engine.breaks = RuntimeError("the caches are gone")
        got = [await outcome(pieces_of(stream)) for stream in streams]
        later = await outcome(thread.submit("c", settings(solution)))
        await thread.close(0.0)
        return got, later, thread.state, thread.reason, thread.in_hand

    got, later, state, reason, in_hand = play(scene, "two requests, and a step that raises")
    names = [str(g).partition(":")[0] for g in [*got, later]]
    what = "what two streams and a later submit raise after a step that raised"
    check.exact(names, ["EngineFailed"] * 3, what=what, fact="step-raises")
    want = "failed", "RuntimeError: the caches are gone", 0
    check.exact((state, reason, in_hand), want, what="(state, reason, in_hand)", fact="step-raises")


@task(3)
def test_idle(solution):
    """the thread: without work it sleeps, and wakes when a request comes"""

    async def scene():
        engine = FakeEngine()
        thread = await started(solution, engine)
        await pieces_of(await thread.submit("a", settings(solution)))
        await asyncio.sleep(0.02)
        before = engine.asked
        await asyncio.sleep(0.1)
        return engine.asked - before, text_of(await pieces_of(await thread.submit("b", settings(solution))))

    asked, text = play(scene, "a request, a rest of 0.1 s, and another")
    what = f"whether an idle thread asks has_work less than 20 times in 0.1 s (it did {asked} times)"
    check.exact(asked < 20, True, what=what, fact="idle")
    check.exact(text, reply_to("b", 6), what="the reply after the rest", fact="idle")


@task(3)
def test_close_waits(solution):
    """shutting down: what is in hand comes to its end, nothing new is taken"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 2
        thread = await started(solution, engine)
        stream = await thread.submit("a", settings(solution, max_tokens=9))
        closing = asyncio.ensure_future(thread.close(3.0))
        await until(lambda: thread.state != "running")
        state, refused = thread.state, await outcome(thread.submit("b", settings(solution)))
        engine.allowed = None
        text = text_of(await pieces_of(stream))
        await closing
        alive = any(t.ident in engine.threads for t in threading.enumerate())
        refused_after = await outcome(thread.submit("b", settings(solution)))
        await thread.close(0.0)
        return state, refused, text, thread.state, alive, refused_after

    got = play(scene, "close with a request in hand")
    what = "(state, submit) while closing, the running reply, (state, thread alive, submit) after"
    want = "closing", "Closing: ", reply_to("a", 9), "closed", False, "Closing: "
    check.exact(got, want, what=what, fact="close")


@task(3)
def test_close_is_bounded(solution):
    """shutting down: what does not end in time is cancelled"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 2
        thread = await started(solution, engine)
        stream = await thread.submit("a", settings(solution, max_tokens=3000))
        began = time.monotonic()
        await thread.close(0.1)
        seconds = time.monotonic() - began
        return await outcome(pieces_of(stream)), engine.cancelled, thread.in_hand, seconds

    got, cancelled, in_hand, seconds = play(scene, "close(0.1) with a request that does not end")
    check.exact(got, "Closing: ", what="what its stream raises", fact="close")
    check.exact((cancelled, in_hand), ([101], 0), what="(cancelled in the engine, in_hand)", fact="close")
    what = f"whether close(0.1) took from 0.1 to 1.5 s (it took {seconds:.2f} s)"
    check.exact(0.09 <= seconds < 1.5, True, what=what, fact="close")


# ---- task 4: the server ----


STUBS = []  # what stubs raised inside servers


def over_http(check):
    """A check of a server. Where that came upon a stub, the stub's own words are what it ends with."""

    @functools.wraps(check)
    def wrapped(solution):
        STUBS.clear()
        try:
            return check(solution)
        except Exception:
            if STUBS:
                raise STUBS[0] from None
            raise

    return wrapped


@dataclass
class Server:
    """The app under uvicorn, in a thread of this process."""

    solution: object
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        import uvicorn

        self.engine = self.options.pop("engine", None) or FakeEngine()
        self.app = self.solution.make_app(self.engine, "fake", **self.options)
        self.socket = socket.create_server((HOST, 0))
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(
            self, log_level="critical", access_log=False, ws="none", loop="asyncio", lifespan="on"
        )
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        what = "the server has started"
        eventually(lambda: self.uvicorn.started or not self.thread.is_alive(), what, "start")
        check.exact(self.uvicorn.started, True, what="whether the app starts under uvicorn", fact="start")

    async def __call__(self, scope, receive, send):
        try:
            await self.app(scope, receive, send)
        except NotImplementedError as error:
            STUBS.append(error)
            raise

    def serve(self):
        with contextlib.suppress(SystemExit):  # uvicorn's, when the app's start fails; eventually tells
            asyncio.run(self.main())

    async def main(self):
        self.loop = asyncio.get_running_loop()
        await self.uvicorn.serve([self.socket])

    @property
    def bridge(self):
        return self.app.state.engine_thread

    def request(self, method, path, body=None, headers=None):
        """(status, headers, body) of one request."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=LIMIT)
        body = json.dumps(body) if isinstance(body, dict) else body
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        except OSError as error:
            return f"{type(error).__name__}: {error}", {}, b""
        finally:
            connection.close()

    def client(self, **options):
        import openai

        given = {"api_key": "none", "max_retries": 0, "timeout": LIMIT, **options}
        return openai.OpenAI(base_url=f"http://{HOST}:{self.port}/v1", **given)

    def hang_up(self, body, events):
        """Ask, read that many events (0: send the request alone), and close the socket."""
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection((HOST, self.port), timeout=LIMIT) as client:
            client.sendall(head.encode() + data)
            seen = b""
            while seen.count(b"data: ") < events:
                seen += client.recv(65536) or b"data: " * events
            if not events:
                eventually(lambda: self.engine.going, "the engine has the request", "complete")

    def await_quiet(self, fact):
        eventually(lambda: not self.engine.going, "the engine has no request left", fact)
        eventually(lambda: self.bridge.in_hand == 0, "no request is in hand", fact)


SERVERS = {}


def server(solution):
    """One server for all checks that leave it as it was."""
    if solution not in SERVERS:
        SERVERS[solution] = Server(solution)
    return SERVERS[solution]


def hello(text="Hi"):
    return [{"role": "user", "content": text}]


def text_body(prompt="ab", count=6, **more):
    return {"model": "fake", "prompt": prompt, "max_tokens": count, **more}


def check_error(got, status, code, *, what, fact, param=None):
    """A response that is OpenAI's error object."""
    check.exact(got[0], status, what=f"the status of {what}", fact=fact)
    try:
        error = json.loads(got[2])["error"]
    except (ValueError, KeyError, TypeError):
        error = {}
    keys = ["code", "message", "param", "type"]
    check.exact(sorted(error), keys, what=f"the keys of the error object of {what}", fact=fact)
    told = error["code"], error["param"], bool(error["message"])
    check.exact(told, (code, param, True), what=f"(code, param, has a message) of {what}", fact=fact)


@task(4)
def test_error_values(solution):
    """errors: what becomes of each exception"""
    from starlette.exceptions import HTTPException

    cases = [
        (solution.ApiError(418, "tea", param="p", code="c"), (418, "tea", "p", "c", False)),
        (solution.Refused("too long"), (400, "too long", None, "context_length_exceeded", False)),
        (solution.Busy(), (429, None, None, "rate_limit_exceeded", True)),
        (solution.Closing(), (503, None, None, "shutting_down", True)),
        (solution.EngineFailed("x"), (500, None, None, "engine_failed", False)),
        (
            HTTPException(405, "Method Not Allowed", {"Allow": "GET"}),
            (405, "Method Not Allowed", None, None, False),
        ),
    ]
    for error, want in cases:
        got = solution.api_error(error)
        message = got.message if want[1] else None
        told = got.status, message, got.param, got.code, "Retry-After" in got.headers
        what = f"(status, message, param, code, has Retry-After) of api_error({error!r})"
        check.exact(told, want, what=what, fact="api-error")
    got = solution.api_error(cases[-1][0]).headers.get("Allow")
    check.exact(got, "GET", what="the header Allow of a 405", fact="api-error")
    for error in (KeyError("the password"), solution.EngineFailed("the password")):
        got = solution.api_error(error)
        told = got.status, "password" in got.message
        what = f"(status, tells its text) of api_error({error!r})"
        check.exact(told, (500, False), what=what, fact="api-hidden")


def request_of(headers=(), chunks=(b"",), gone=None):
    """A Starlette request with this body; `gone` is an asyncio.Event at which the client goes away."""
    from starlette.requests import Request

    left = list(chunks)

    async def receive():
        if left:
            chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}
        if gone is not None:
            await gone.wait()
        return {"type": "http.disconnect"}

    pairs = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": pairs}
    return Request(scope, receive), left


@task(4)
def test_prompt_of(solution):
    """the prompt: a text's as it is, a chat's through the template"""
    ask = solution.Ask("chat", solution.Settings(), messages=({"role": "system", "content": "Be"}, *hello()))
    got = solution.prompt_of(ask, FakeTokenizer())
    check.exact(
        got, "<system>Be<user>Hi<assistant>", what="prompt_of a chat of two messages", fact="prompt-of"
    )
    for prompt in ("Once", (5, 6)):
        ask = solution.Ask("text", solution.Settings(), prompt=prompt)
        check.exact(
            solution.prompt_of(ask, FakeTokenizer()),
            prompt,
            what=f"prompt_of a text, {prompt!r}",
            fact="prompt-of",
        )
    plain = FakeTokenizer()
    plain.has_chat_template = False
    bad = solution.Ask("chat", solution.Settings(), messages=tuple(hello("no template for this")))
    for ask, tokenizer in (
        (bad, FakeTokenizer()),
        (solution.Ask("chat", solution.Settings(), messages=tuple(hello())), plain),
    ):
        try:
            got = solution.prompt_of(ask, tokenizer)
        except solution.ApiError as error:
            got = error.status, error.param
        what = f"(status, param), the template {'refuses' if tokenizer.has_chat_template else 'is not there'}"
        check.exact(got, (400, "messages"), what=what, fact="prompt-refused")


@task(4)
def test_unless_gone(solution):
    """going away: the work ends with the client"""
    notes = []

    async def work(seconds):
        try:
            await asyncio.sleep(seconds)
            return "done"
        finally:
            await asyncio.sleep(0.01)
            notes.append("ended")

    async def scene():
        gone = asyncio.Event()
        request, _ = request_of(gone=gone)
        await request.body()
        first = await solution.unless_gone(request, work(0.01))

        async def fails():
            raise KeyError("from the work")

        second = await outcome(solution.unless_gone(request, fails()))
        asyncio.get_running_loop().call_later(0.05, gone.set)
        notes.clear()
        third = str(await outcome(solution.unless_gone(request, work(60)))).partition(":")[0]
        return first, second, third, list(notes), len(asyncio.all_tasks())

    first, second, third, ended, left = play(
        scene, "work whose client stays, and work whose client goes away"
    )
    check.exact(
        (first, second),
        ("done", "KeyError: 'from the work'"),
        what="what comes of work while the client is there",
        fact="gone",
    )
    told = "what is raised when it goes, and whether the work had ended by then"
    check.exact((third, ended), ("ClientDisconnect", ["ended"]), what=told, fact="gone")
    check.exact(left, 2, what="tasks left in the loop, this one and its limit", fact="gone")


@task(4)
def test_all_pieces(solution):
    """going away: a stream that is no longer read is cancelled"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 2
        thread = await started(solution, engine)
        reading = asyncio.ensure_future(
            solution.all_pieces(await thread.submit("a", settings(solution, max_tokens=99)))
        )
        await asyncio.sleep(0.01)  # it has begun to read
        await until(lambda: engine.allowed == 0)
        reading.cancel()
        await asyncio.wait({reading})
        await until(lambda: not engine.going)
        engine.allowed = None
        pieces = await solution.all_pieces(await thread.submit("b", settings(solution)))
        return reading.cancelled(), thread.in_hand, text_of(pieces)

    got = play(scene, "all_pieces, cancelled in the middle, and another to its end")
    what = "(all_pieces was cancelled, in_hand, text of another)"
    check.exact(got, (True, 0, reply_to("b", 6)), what=what, fact="all-pieces")


@task(4)
def test_error_event(solution):
    """failure: the last event of a stream is the error"""

    async def scene():
        engine = FakeEngine()
        engine.allowed = 1
        thread = await started(solution, engine)
        stream = await thread.submit("ab", settings(solution, max_tokens=50))
        reply = solution.Reply(solution.Ask("text", solution.Settings(), stream=True), "id", 1, "fake")
        seen = []
        async for event in solution.events(stream, reply):
            seen.append(event)
            engine.breaks = RuntimeError("gone")
        return seen

    seen = play(scene, "events of a stream whose engine fails after a step")
    data = [json.loads(event.decode()[6:]) if b"{" in event else event for event in seen]
    told = [list(d) == ["error"] if isinstance(d, dict) else d for d in data]
    check.exact(
        told, [False, True], what="for each event, whether it is the error object", fact="events-error"
    )
    check.exact(
        sorted(data[-1]["error"]), ["code", "message", "param", "type"], what="its keys", fact="events-error"
    )


@task(4)
@over_http
def test_events(solution):
    """the stream: its bytes, event by event"""
    body = text_body("abc", 7, stream=True)
    status, headers, data = server(solution).request("POST", "/v1/completions", body)
    kind = headers.get("content-type", "").partition(";")[0]
    check.exact(
        (status, kind), (200, "text/event-stream"), what="(status, type) of a stream", fact="stream-type"
    )
    *events, end = data.decode().split("\n\n")
    check.exact((end, events[-1:]), ("", ["data: [DONE]"]), what="what a stream ends with", fact="events")
    odd = [event for event in events if not event.startswith("data: ") or "\n" in event]
    check.exact(odd, [], what="events that are not one line that begins with 'data: '", fact="events")
    said = [json.loads(event[6:])["choices"][0] for event in events[:-1]]
    want = [text for _, text in script(list(b"abc"), 7) if text]
    check.exact([s["text"] for s in said], [*want, ""], what="the texts of its events", fact="events")
    check.exact(said[-1]["finish_reason"], "length", what="the last finish_reason", fact="events")


@task(4)
@over_http
def test_events_come_at_once(solution):
    """the stream: events come while the engine is still at it"""
    here = Server(solution)
    here.engine.allowed = 2
    connection = http.client.HTTPConnection(HOST, here.port, timeout=LIMIT)
    connection.request("POST", "/v1/completions", json.dumps(text_body("abc", 5, stream=True)))
    seen = []
    try:
        response = connection.getresponse()
        while len(seen) < 2:
            line = response.readline()
            seen += [json.loads(line[6:])["choices"][0]["text"]] if line.startswith(b"data: {") else []
            if not line:
                break
    except (OSError, ValueError) as error:
        seen.append(type(error).__name__)
    want = [text for _, text in script(list(b"abc"), 5)]
    check.exact(seen, want[:2], what="the events after 2 steps of 5", fact="events")
    here.engine.allowed = None
    check.exact(b"[DONE]" in response.read(), True, what="whether the rest ends with [DONE]", fact="events")
    connection.close()


@task(4)
@over_http
def test_errors(solution):
    """errors: in OpenAI's shape, whatever went wrong"""
    ask, path = server(solution).request, "/v1/chat/completions"
    chat = {"model": "fake", "messages": hello()}
    told = {"fact": "api-error"}
    check_error(ask("POST", path, "{"), 400, None, what="a body that is no JSON", **told)
    got = ask("POST", path, {**chat, "n": 2})
    check_error(got, 400, None, param="n", what="n = 2", **told)
    got = ask("POST", path, {**chat, "model": "gpt"})
    check_error(got, 404, "model_not_found", param="model", what="another model", **told)
    got = ask("POST", path, {**chat, "messages": hello("x" * 500)})
    check_error(got, 400, "context_length_exceeded", what="a prompt that is too long", **told)
    reason = json.loads(got[2])["error"]["message"]
    check.exact(
        "room for 400" in reason, True, what=f"whether the engine's reason is told: {reason!r}", **told
    )
    got = ask("POST", path, {**chat, "messages": hello("no template for this")})
    check_error(got, 400, None, param="messages", what="messages that the template refuses", fact="prompt-of")
    got = ask("POST", "/v1/completions", text_body("raise"))
    check_error(got, 500, "engine_failed", what="a request at which the engine raises", **told)
    check_error(ask("GET", path), 405, None, what=f"GET {path}", **told)
    check_error(ask("POST", "/v1/nothing", {}), 404, None, what="POST /v1/nothing", **told)
    check_error(
        ask("POST", "/v1/completions", text_body([10_000])),
        400,
        None,
        param="prompt",
        what="an id of no token",
        **told,
    )
    got = ask("POST", path, {**chat, "stream": True, "messages": hello("x" * 500)})
    check_error(
        got, 400, "context_length_exceeded", what="a stream whose prompt is too long", fact="complete"
    )
    server(solution).await_quiet("complete")


@task(4)
@over_http
def test_body(solution):
    """the body: up to the limit, and not beyond it"""
    for chunks in ([b"abcd", b"efgh"], [b"x" * 10], [b""], [b"12345"] * 2):
        got = play(
            lambda c=chunks: solution.read_body(request_of(chunks=c)[0], 10), "a body of 10 bytes or less"
        )
        check.exact(got, b"".join(chunks), what=f"read_body of {chunks}, at most 10 bytes", fact="body")

    def refusal(headers, chunks):
        request, left = request_of(headers, chunks)

        async def scene():
            try:
                return await solution.read_body(request, 10)
            except solution.ApiError as error:
                return error.status, error.code, len(left)

        return play(scene, "a body that is too large")

    got = refusal([("Content-Length", "11")], [b"x" * 11])
    want = 413, "body_too_large", 1
    what = "(status, code, chunks left unread) where Content-Length says 11 of 10"
    check.exact(got, want, what=what, fact="body")
    got = refusal([], [b"12345"] * 40)
    what = "(status, code, chunks left unread) of 40 chunks of 5 bytes, at most 10 bytes"
    check.exact(got, (413, "body_too_large", 37), what=what, fact="body")
    here = Server(solution, {"max_body_bytes": 200})
    body = text_body("x" * 200)
    got = here.request("POST", "/v1/completions", body)
    check_error(got, 413, "body_too_large", what="a body of more than 200 bytes", fact="body")
    check.exact(here.engine.submitted, [], what="what the engine was asked", fact="complete")
    got = here.request("POST", "/v1/completions", text_body("x" * 50))
    check.exact(got[0], 200, what="the status for a smaller one", fact="complete")


@task(4)
@over_http
def test_key(solution):
    """the key: every path but /health asks for it, before anything else"""
    here = Server(solution, {"api_key": "sésame", "max_body_bytes": 100})
    right = {"Authorization": "Bearer sésame".encode()}
    for given in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": b"Bearer s\xff"}):
        for method, path, body in (
            ("POST", "/v1/completions", text_body("x" * 500)),
            ("POST", "/v1/chat/completions", "{"),
            ("GET", "/v1/models", None),
        ):
            got = here.request(method, path, body, given)
            what = f"{method} {path} with {given or 'no key'}"
            check_error(got, 401, "invalid_api_key", what=what, fact="complete")
    for given, want in (("Bearer key", True), ("Bearer kex", False), ("key", False), ("Bearer key2", False)):
        request, _ = request_of([("Authorization", given)])
        got = solution.has_key(request, "key")
        check.exact(got, want, what=f"has_key with Authorization: {given}, the key being 'key'", fact="key")
    for given in ([], [("Authorization", "Bearer x")]):
        got = solution.has_key(request_of(given)[0], None)
        check.exact(got, True, what="has_key where no key is needed", fact="key")
    request, _ = request_of([("Authorization", "Bearer \xe9")])
    check.exact(
        solution.has_key(request, "key"), False, what="has_key with a header beyond ASCII", fact="key"
    )
    got = here.request("GET", "/health")[0], here.request("GET", "/v1/models", None, right)[0]
    check.exact(got[0], 200, what="the status of /health without a key", fact="complete")


@task(4)
@over_http
def test_client_hangs_up(solution):
    """going away: the engine's work ends, streamed or not"""
    here = Server(solution)
    here.engine.step_seconds = 0.002
    for number in range(3):
        here.hang_up(text_body(f"gone {number}", 4000, stream=True), 3)
    here.await_quiet("stream-over")
    check.exact(
        len(here.engine.cancelled),
        3,
        what="requests cancelled after 3 streams were hung up on",
        fact="stream-over",
    )
    here.hang_up(text_body("not streamed", 4000), 0)
    here.await_quiet("complete")
    check.exact(
        len(here.engine.cancelled), 4, what="and after a reply that is not streamed was", fact="complete"
    )
    got = here.request("POST", "/v1/completions", text_body())
    told = got[0], json.loads(got[2])["choices"][0]["text"]
    check.exact(told, (200, reply_to("ab", 6)), what="(status, text) of the next request", fact="complete")
    here.engine.allowed = 0
    here.hang_up(text_body("waits", 4000, stream=True), 0)  # before its first piece
    here.await_quiet("stream-over")


@task(4)
@over_http
def test_openai_chat(solution):
    """OpenAI's client: a chat, whole and streamed"""
    client = server(solution).client()
    options = {"model": "fake", "messages": hello("Hi €"), "max_tokens": 12}
    want, prompt_tokens = reply_to(chat_prompt("Hi €"), 12), len(chat_prompt("Hi €"))
    whole = client.chat.completions.create(**options)
    choice = whole.choices[0]
    told = choice.message.content, choice.message.role, choice.finish_reason, whole.object
    want_told = want, "assistant", "length", "chat.completion"
    check.exact(told, want_told, what="(content, role, finish_reason, object) of a chat", fact="complete")
    used = whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens
    check.exact(used, (prompt_tokens, 12, prompt_tokens + 12), what="its usage", fact="complete")
    options |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**options))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    check.exact(deltas[0].role, "assistant", what="the first delta's role, streamed", fact="events")
    check.exact("".join(d.content or "" for d in deltas), want, what="the deltas joined", fact="events")
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    check.exact(reasons[-1], "length", what="the last chunk's finish_reason", fact="events")
    check.exact(
        chunks[-1].usage.completion_tokens, 12, what="the usage at the end of the stream", fact="events"
    )
    ids = {whole.id, *(c.id for c in chunks)}
    check.exact(len(ids), 2, what="different ids in a reply and a streamed one", fact="complete")


@task(4)
@over_http
def test_openai_text(solution):
    """OpenAI's client: a text, from ids, with stop and log-probabilities"""
    client = server(solution).client()
    ids = [ord(c) for c in "once"]
    options = {"model": "fake", "prompt": ids, "max_tokens": 9}
    got = client.completions.create(**options, logprobs=2)
    want = script(ids, 9)
    check.exact(got.choices[0].text, reply_to(ids, 9), what="the text for a prompt of ids", fact="complete")
    tokens = got.choices[0].logprobs.tokens
    check.exact(tokens, [chr(t) for t, _ in want], what="its logprobs.tokens", fact="complete")
    stream = client.completions.create(**options, stream=True)
    joined = "".join(c.choices[0].text for c in stream)
    check.exact(joined, reply_to(ids, 9), what="the same, streamed and joined", fact="events")
    stop = reply_to(ids, 9)[4]
    got = client.completions.create(**options, stop=stop).choices[0]
    cut = reply_to(ids, 9).partition(stop)[0]
    check.exact(
        (got.text, got.finish_reason), (cut, "stop"), what=f"the text with stop={stop!r}", fact="complete"
    )
    settings = server(solution).engine.submitted[-1][1]
    told = settings.stop, settings.temperature, settings.max_tokens
    check.exact(
        told, ((stop,), 1.0, 9), what="(stop, temperature, max_tokens) that the engine got", fact="complete"
    )


@task(4)
@over_http
def test_openai_models(solution):
    """OpenAI's client: the list of models; /health"""
    client = server(solution).client()
    check.exact([m.id for m in client.models.list()], ["fake"], what="ids of models.list()", fact="complete")
    check.exact(client.models.retrieve("fake").id, "fake", what="models.retrieve('fake')", fact="complete")
    status, _, body = server(solution).request("GET", "/health")
    told = status, json.loads(body)["status"]
    check.exact(told, (200, "ok"), what="(status, its word) of GET /health", fact="complete")


@task(4)
@over_http
def test_openai_many(solution):
    """OpenAI's client: twelve at once, each with its own reply"""
    made, prompts = {}, [f"prompt {n}" * (n + 1) for n in range(12)]
    client = server(solution).client()

    def ask(number):
        options = {"model": "fake", "prompt": prompts[number], "max_tokens": 20 + number}
        if number % 3:
            made[number] = "".join(
                c.choices[0].text for c in client.completions.create(**options, stream=True)
            )
        else:
            made[number] = client.completions.create(**options).choices[0].text

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    want = {n: reply_to(prompt, 20 + n) for n, prompt in enumerate(prompts)}
    check.exact(dict(sorted(made.items())), want, what="the replies to 12 clients at once", fact="complete")
    server(solution).await_quiet("complete")


@task(4)
@over_http
def test_busy(solution):
    """back-pressure: beyond the limit 429, with Retry-After"""
    import openai

    here = Server(solution, {"queue_limit": 2})
    here.engine.allowed = 0
    client, done = here.client(), []

    def ask():
        done.append(client.completions.create(model="fake", prompt="ab", max_tokens=6).choices[0].text)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(here.engine.going) == 2, "two requests are in hand", "complete")
    got = here.request("POST", "/v1/completions", text_body())
    check_error(got, 429, "rate_limit_exceeded", what="the third request of two", fact="api-error")
    check.exact(
        got[1].get("retry-after", "").isdigit(),
        True,
        what="whether Retry-After is a number",
        fact="api-error",
    )
    try:
        client.completions.create(model="fake", prompt="ab", stream=True)
        raised = "nothing"
    except openai.OpenAIError as error:
        raised = type(error).__name__
    check.exact(raised, "RateLimitError", what="what OpenAI's client raises", fact="complete")
    here.engine.allowed = None
    for thread in threads:
        thread.join(LIMIT)
    check.exact(done, [reply_to("ab", 6)] * 2, what="the two replies, in the end", fact="complete")
    got = here.request("POST", "/v1/completions", text_body())[0]
    check.exact(got, 200, what="the status of the next request", fact="complete")


@task(4)
@over_http
def test_engine_fails(solution):
    """failure: in a stream, in a reply, and afterwards"""
    import openai

    here = Server(solution)
    here.engine.allowed = 2
    stream = here.client().completions.create(model="fake", prompt="abc", max_tokens=50, stream=True)
    got, answer = [next(stream).choices[0].text], []
    waits = threading.Thread(
        target=lambda: answer.append(here.request("POST", "/v1/completions", text_body())), daemon=True
    )
    waits.start()
    eventually(lambda: len(here.engine.going) == 2, "two requests are in hand", "complete")
    here.engine.breaks = RuntimeError("the caches are gone")
    try:
        got += [chunk.choices[0].text for chunk in stream]
        raised = "nothing"
    except openai.OpenAIError as error:
        raised = type(error).__name__
    check.exact(raised, "APIError", what="what OpenAI's client raises in the stream", fact="events-error")
    waits.join(LIMIT)
    answered = answer[0] if answer else ("nothing", {}, b"")
    check_error(answered, 500, "engine_failed", what="the reply that was not streamed", fact="api-error")
    check_error(
        here.request("POST", "/v1/completions", text_body()),
        500,
        "engine_failed",
        what="the next request",
        fact="api-error",
    )
    status, _, body = here.request("GET", "/health")
    told = status, json.loads(body)["status"]
    check.exact(told, (503, "failed"), what="(status, its word) of /health", fact="step-raises")


@task(4)
@over_http
def test_shut_down(solution):
    """shutting down: running replies end, new requests get 503"""
    here = Server(solution)
    here.engine.allowed = 2
    stream = here.client().completions.create(model="fake", prompt="abc", max_tokens=9, stream=True)
    first = next(stream).choices[0].text
    asyncio.run_coroutine_threadsafe(here.bridge.close(LIMIT), here.loop)
    eventually(lambda: here.bridge.state != "running", "the server is closing", "close")
    got = here.request("POST", "/v1/completions", text_body())
    check_error(got, 503, "shutting_down", what="a request while closing", fact="api-error")
    check.exact(
        "retry-after" in {k.lower() for k in got[1]},
        True,
        what="whether it has Retry-After",
        fact="api-error",
    )
    check.exact(here.request("GET", "/health")[0], 503, what="the status of /health", fact="close")
    here.engine.allowed = None
    text = first + "".join(chunk.choices[0].text for chunk in stream)
    check.exact(text, reply_to("abc", 9), what="the reply that was running", fact="close")
    here.uvicorn.should_exit = True
    eventually(lambda: not here.thread.is_alive(), "the server has ended", "close")
    check.exact(here.bridge.state, "closed", what="the thread's state then", fact="close")
