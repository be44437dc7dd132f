"""Day 2.8, the protocol: requests read and replies written, compared with what OpenAI's reference shows."""

import json

from tinyllm.grader.testing import check, task

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Once"}
SETTINGS = (
    "max_tokens", "stop", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "logprobs",
)  # fmt: skip
DEFAULTS = {
    "max_tokens": 256, "stop": (), "temperature": 1.0, "top_p": None, "top_k": None, "min_p": 0.0,
    "repetition_penalty": 1.0, "seed": None, "logprobs": 0,
}  # fmt: skip


def limits(solution, **changed):
    return solution.Limits(**{"max_tokens": 300, "vocabulary": 100, **changed})


def settings_of(settings):
    return {name: getattr(settings, name, "missing") for name in SETTINGS}


def refusal(solution, call):
    """(status, param, code) of the ApiError that `call` raises, or what it does instead."""
    try:
        got = call()
    except solution.ApiError as error:
        body = error.body()["error"]
        told = isinstance(body["message"], str) and len(body["message"]) > 5
        return (error.status, body["param"], body["code"]) if told else "an ApiError without a message"
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"taken: {got!r}"


def check_refused(solution, call, *, what, fact, status=400, param=None, code=None):
    check.exact(
        refusal(solution, call), (status, param, code), what=f"{what}: (status, param, code)", fact=fact
    )


# ---- task 1 ----


@task(1)
def test_body_is_an_object(solution):
    """the body: an object as it is"""
    for body in (b'{"a": [1, null, {"b": "\\u20ac"}]}', '{"a": "é€😀"}'.encode(), b" {} \n"):
        got = solution.parse_object(body)
        check.exact(got, json.loads(body), what=f"parse_object({body!r})", fact="req-object")


@task(1)
def test_body_is_refused(solution):
    """the body: no JSON, no UTF-8, no object, no text"""
    bodies = (b"", b"{", b"nonsense", b"[1]", b'"text"', b"null", b"3", b'{"a": "\xff"}', b'{"a": "\\ud800"}')
    bodies += (b'{"\\udfff": 1}', b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    for body in bodies:
        said = f"parse_object({body[:40]!r}{'...' if len(body) > 40 else ''})"
        check_refused(solution, lambda b=body: solution.parse_object(b), what=said, fact="req-object")


@task(1)
def test_defaults(solution):
    """settings: what is missing or null has its default"""
    for kind, most in (("chat", 256), ("text", 16)):
        for data in ({}, dict.fromkeys(("temperature", "top_p", "stop", "seed", "max_tokens", "logprobs"))):
            got = solution.read_settings(data, kind, limits(solution))
            what = f"read_settings({data}, {kind!r}, limits)"
            check.exact(settings_of(got), {**DEFAULTS, "max_tokens": most}, what=what, fact="req-defaults")
    got = solution.read_settings({"top_p": 1}, "chat", limits(solution, max_tokens=9))
    what = "read_settings({'top_p': 1}, 'chat', Limits(max_tokens=9))"
    check.exact(settings_of(got), {**DEFAULTS, "max_tokens": 9}, what=what, fact="req-defaults")


@task(1)
def test_settings(solution):
    """settings: every field, at both ends of its range too"""
    cases = (
        {"max_tokens": 1, "temperature": 0, "top_p": 0.5, "seed": 0, "top_k": 1, "min_p": 0},
        {"max_tokens": 300, "temperature": 2, "seed": 2**63 - 1, "top_k": 100, "min_p": 1},
        {"temperature": 0.7, "repetition_penalty": 1.3, "top_p": 0.001},
        {"repetition_penalty": 10, "seed": 7},
    )
    for data in cases:
        for kind in ("chat", "text"):
            got = settings_of(solution.read_settings(data, kind, limits(solution)))
            want = {**DEFAULTS, "max_tokens": 256 if kind == "chat" else 16, **data}
            check.exact(got, want, what=f"read_settings({data}, {kind!r}, limits)", fact="req-ranges")


@task(1)
def test_settings_refused(solution):
    """settings: other types and values outside the range, with the field's name"""
    bad = {
        "max_tokens": (0, -1, 301, 1.5, "5", True, [5]),
        "temperature": (-0.1, 2.1, float("nan"), float("inf"), "1", False, {}),
        "top_p": (0, -0.5, 1.01, "0.5", True),
        "seed": (-1, 2**63, 1.0, "1", True),
        "top_k": (0, 101, 2.0),
        "min_p": (-0.1, 1.1),
        "repetition_penalty": (0, -1, 11),
    }
    for name, values in bad.items():
        for value in values:
            check_refused(
                solution,
                lambda n=name, v=value: solution.read_settings({n: v}, "chat", limits(solution)),
                what=f"read_settings({{{name!r}: {value!r}}}, 'chat', limits)",
                param=name,
                fact="req-ranges",
            )


@task(1)
def test_max_completion_tokens(solution):
    """settings: max_completion_tokens, in a chat"""
    data = {"max_completion_tokens": 12}
    got = solution.read_settings(data, "chat", limits(solution)).max_tokens
    what = "max_tokens of read_settings({'max_completion_tokens': 12}, 'chat', limits)"
    check.exact(got, 12, what=what, fact="req-max")
    got = solution.read_settings({"max_tokens": None, **data}, "chat", limits(solution)).max_tokens
    check.exact(got, 12, what=f"{what}, and max_tokens null", fact="req-max")
    status = refusal(
        solution, lambda: solution.read_settings({"max_tokens": 12, **data}, "chat", limits(solution))
    )
    what = "the status for both max_tokens and max_completion_tokens in a chat"
    check.exact(status[0], 400, what=what, fact="req-max")
    check_refused(
        solution,
        lambda: solution.read_settings({"max_completion_tokens": 0}, "chat", limits(solution)),
        what="read_settings({'max_completion_tokens': 0}, 'chat', limits)",
        param="max_completion_tokens",
        fact="req-ranges",
    )


@task(1)
def test_stop(solution):
    """settings: stop strings, one or several"""
    for stop, want in (
        ("END", ("END",)),
        (["a", "€\n"], ("a", "€\n")),
        ([], ()),
        (list("abcd"), tuple("abcd")),
    ):
        got = solution.read_settings({"stop": stop}, "text", limits(solution)).stop
        check.exact(
            got, want, what=f"stop of read_settings({{'stop': {stop!r}}}, 'text', limits)", fact="req-stop"
        )
    for stop in ("", [""], ["a", ""], list("abcde"), 3, [3], {"a": 1}, True):
        check_refused(
            solution,
            lambda s=stop: solution.read_settings({"stop": s}, "text", limits(solution)),
            what=f"read_settings({{'stop': {stop!r}}}, 'text', limits)",
            param="stop",
            fact="req-stop",
        )


@task(1)
def test_logprobs_asked_for(solution):
    """settings: how many alternatives are asked for"""
    cases = [("chat", {"logprobs": True}, 0), ("chat", {"logprobs": True, "top_logprobs": 20}, 20)]
    cases += [("chat", {"logprobs": False}, 0), ("text", {"logprobs": 0}, 0), ("text", {"logprobs": 5}, 5)]
    for kind, data, want in cases:
        got = solution.read_settings(data, kind, limits(solution)).logprobs
        check.exact(
            got, want, what=f"logprobs of read_settings({data}, {kind!r}, limits)", fact="req-logprobs"
        )
    bad = [("chat", {"top_logprobs": 2}, "top_logprobs"), ("text", {"logprobs": 6}, "logprobs")]
    bad += [
        ("chat", {"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ("text", {"logprobs": True}, "logprobs"),
    ]
    bad += [("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs")]
    for kind, data, param in bad:
        check_refused(
            solution,
            lambda k=kind, d=data: solution.read_settings(d, k, limits(solution)),
            what=f"read_settings({data}, {kind!r}, limits)",
            param=param,
            fact="req-logprobs",
        )


@task(1)
def test_messages(solution):
    """messages: roles and text, also in parts"""
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "€"}],
            "name": "Mia",
        },
        {"role": "assistant", "content": "Hello.", "tool_calls": None},
        {"role": "user", "content": ""},
    ]
    want = [("system", "Be brief."), ("user", "Hi €"), ("assistant", "Hello."), ("user", "")]
    got = [dict(m) for m in solution.read_messages({"messages": messages})]
    want = [{"role": role, "content": content} for role, content in want]
    check.exact(got, want, what="read_messages of four messages", fact="req-messages")
    got = [dict(m) for m in solution.read_messages({"messages": [{"role": "system", "content": "x"}]})]
    what = "read_messages of a system message alone"
    check.exact(got, [{"role": "system", "content": "x"}], what=what, fact="req-messages")


@task(1)
def test_messages_refused(solution):
    """messages: what the model cannot be given"""
    say = {"role": "user", "content": "Hi"}
    bad = (
        None,
        [],
        "Hi",
        {},
        ["Hi"],
        [{"role": "user"}],
        [{"content": "Hi"}],
        [{**say, "role": "tool"}],
        [None],
    )
    bad += ([{**say, "role": ["user"]}], [say, {**say, "content": None}], [{**say, "content": 3}])
    image = {"type": "image_url", "image_url": {"url": "x"}}
    bad += ([{**say, "content": [image]}], [{**say, "content": [{"type": "text"}]}])
    bad += ([{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],)
    for messages in bad:
        check_refused(
            solution,
            lambda m=messages: solution.read_messages({} if m is None else {"messages": m}),
            what=f"read_messages({{'messages': {messages!r}}})",
            param="messages",
            fact="req-messages-refused",
        )


@task(1)
def test_prompt(solution):
    """the prompt: text or ids, alone or in a list of one"""
    cases = (
        ("Once €", "Once €"),
        (["Once"], "Once"),
        ([5, 0, 99], (5, 0, 99)),
        ([[7, 8]], (7, 8)),
        ([3], (3,)),
    )
    for prompt, want in cases:
        got = solution.read_prompt({"prompt": prompt}, limits(solution))
        check.exact(got, want, what=f"read_prompt({{'prompt': {prompt!r}}}, limits)", fact="req-prompt")
    bad = (
        "",
        [],
        [""],
        [[]],
        None,
        5,
        ["a", "b"],
        [[1], [2]],
        [1, 100],
        [-1],
        [1.0],
        [True],
        [1, "a"],
        {"a": 1},
    )
    for prompt in bad:
        check_refused(
            solution,
            lambda p=prompt: solution.read_prompt({"prompt": p}, limits(solution)),
            what=f"read_prompt({{'prompt': {prompt!r}}}, Limits(vocabulary=100))",
            param="prompt",
            fact="req-prompt-refused",
        )


def read(solution, kind, data):
    return solution.read_request(kind, json.dumps(data).encode(), "m", limits(solution))


@task(1)
def test_request(solution):
    """the request: a chat and a text, whole"""
    got = read(
        solution, "chat", {**CHAT, "seed": 3, "stream": True, "stream_options": {"include_usage": True}}
    )
    told = got.kind, [dict(m) for m in got.messages], got.stream, got.include_usage, got.logprobs
    want = "chat", CHAT["messages"], True, True, False
    check.exact(
        told, want, what="(kind, messages, stream, include_usage, logprobs) of a chat", fact="req-stream"
    )
    wanted = {**DEFAULTS, "seed": 3}
    check.exact(settings_of(got.settings), wanted, what="its settings, with seed 3", fact="req-defaults")
    got = read(solution, "text", {**TEXT, "max_tokens": 4, "stream": False})
    told = got.kind, got.prompt, got.stream, got.include_usage, got.logprobs
    what = "(kind, prompt, stream, include_usage, logprobs) of a text"
    check.exact(told, ("text", "Once", False, False, False), what=what, fact="req-stream")
    check.exact(got.settings.max_tokens, 4, what="its max_tokens", fact="req-ranges")
    cases = [("chat", {"logprobs": True}, True), ("chat", {"logprobs": False}, False), ("chat", {}, False)]
    cases += [
        ("text", {"logprobs": 0}, True),
        ("text", {"logprobs": 2}, True),
        ("text", {"logprobs": None}, False),
    ]
    for kind, data, want in cases:
        got = read(solution, kind, {**(CHAT if kind == "chat" else TEXT), **data}).logprobs
        check.exact(got, want, what=f"Ask.logprobs of a {kind} with {data}", fact="req-wants")


@task(1)
def test_model_name(solution):
    """the request: the model's name"""
    for name in (None, 3, ["m"]):
        data = {**TEXT, "model": name}
        check_refused(
            solution,
            lambda d=data: read(solution, "text", d),
            what=f"model {name!r}",
            param="model",
            fact="req-model",
        )
    check_refused(
        solution,
        lambda: read(solution, "chat", {**CHAT, "model": "gpt"}),
        what="model 'gpt' where 'm' is served",
        status=404,
        param="model",
        code="model_not_found",
        fact="req-model",
    )


@task(1)
def test_nothing_is_ignored(solution):
    """the request: what is not done is refused"""
    for extra in (
        {
            "n": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
            "user": "Mia",
            "store": False,
        },
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "metadata": {"a": "b"}},
        {"n": None, "tools": None, "anything": None},
    ):
        got = refusal(solution, lambda e=extra: read(solution, "chat", {**CHAT, **e}).kind)
        check.exact(got, "taken: 'chat'", what=f"a chat with {extra}", fact="req-refused")
    bad = [
        ("chat", {"n": 2}),
        ("chat", {"n": True}),
        ("chat", {"presence_penalty": 0.5}),
        ("chat", {"tools": [{}]}),
    ]
    bad += [("chat", {"response_format": {"type": "json_object"}}), ("chat", {"logit_bias": {"5": 1}})]
    bad += [
        ("text", {"best_of": 2}),
        ("text", {"echo": True}),
        ("text", {"suffix": "x"}),
        ("text", {"top_n": 1}),
    ]
    bad += [("text", {"messages": []}), ("chat", {"prompt": "x"}), ("text", {"max_completion_tokens": 3})]
    bad += [("text", {"top_logprobs": 1}), ("chat", {"store": 0})]
    for kind, extra in bad:
        check_refused(
            solution,
            lambda k=kind, e=extra: read(solution, k, {**(CHAT if k == "chat" else TEXT), **e}),
            what=f"a {kind} with {extra}",
            param=next(iter(extra)),
            fact="req-refused",
        )


@task(1)
def test_stream_flags(solution):
    """the request: stream and stream_options"""
    bad = [({"stream": 1}, "stream"), ({"stream": "true"}, "stream")]
    bad += [({"stream_options": {"include_usage": True}}, "stream_options")]
    bad += [({"stream": True, "stream_options": [1]}, "stream_options")]
    bad += [({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage")]
    for extra, param in bad:
        check_refused(
            solution,
            lambda e=extra: read(solution, "chat", {**CHAT, **e}),
            what=f"a chat with {extra}",
            param=param,
            fact="req-stream",
        )
    got = read(solution, "chat", {**CHAT, "stream": True, "stream_options": {}}).include_usage
    check.exact(got, False, what="include_usage with stream_options {}", fact="req-stream")


# ---- task 2 ----


@task(2)
def test_sse(solution):
    """events: one line of JSON each, in UTF-8"""
    for data in ({"a": 1}, {"text": "two\nlines\r\n\u2028 and data: €😀"}, {"error": {"code": None}}):
        got = solution.sse(data)
        what = f"sse({data!r})"
        check.exact(type(got), bytes, what=f"the type of {what}", fact="sse")
        text = got.decode(errors="replace")
        ends = text.startswith("data: "), text.endswith("\n\n"), len(got.splitlines())
        told = f"{what}: (begins with 'data: ', ends with an empty line, number of lines)"
        check.exact(ends, (True, True, 2), what=told, fact="sse")
        check.exact(json.loads(text[6:]), data, what=f"the JSON in {what}", fact="sse")
    check.exact(solution.sse("[DONE]"), b"data: [DONE]\n\n", what="sse('[DONE]')", fact="sse")


def tokens(solution):
    made = [("On", -0.25, (("On", -0.25), ("In", -2.0))), ("ce", -0.5, ()), ("\ufffd", -1.0, (("€", -3.0),))]
    return [solution.TokenText(*each) for each in made]


@task(2)
def test_chat_logprobs(solution):
    """log-probabilities: a chat's form"""
    got = solution.chat_logprobs(tokens(solution))

    def entry(text, logprob, data, **more):
        return {"token": text, "logprob": logprob, "bytes": data, **more}

    euro = entry("€", -3.0, [226, 130, 172])
    want = [
        entry(
            "On", -0.25, [79, 110], top_logprobs=[entry("On", -0.25, [79, 110]), entry("In", -2.0, [73, 110])]
        ),
        entry("ce", -0.5, [99, 101], top_logprobs=[]),
        entry("\ufffd", -1.0, None, top_logprobs=[euro]),
    ]
    check.exact(sorted(got), ["content", "refusal"], what="keys of chat_logprobs of 3 tokens", fact="lp-chat")
    check.exact(got["refusal"], None, what="its refusal", fact="lp-chat")
    plain = [{**e, "bytes": 0} for e in got["content"]]
    check.exact(len(plain), 3, what="its number of entries", fact="lp-chat")
    for number, (mine, right) in enumerate(zip(got["content"], want, strict=True)):
        check.exact(
            mine["bytes"],
            right["bytes"],
            what=f"bytes of token {number}, {right['token']!r}",
            fact="lp-bytes",
        )
        check.exact(mine, right, what=f"entry {number}", fact="lp-chat")
    check.exact(
        solution.chat_logprobs([]), {"content": [], "refusal": None}, what="chat_logprobs([])", fact="lp-chat"
    )


@task(2)
def test_text_logprobs(solution):
    """log-probabilities: a text's form"""
    for offset in (0, 7):
        got = solution.text_logprobs(tokens(solution), offset)
        what = f"text_logprobs of 3 tokens, offset {offset}"
        starts = [offset, offset + 2, offset + 4]
        check.exact(got.get("text_offset"), starts, what=f"text_offset of {what}", fact="lp-offset")
        want = {
            "tokens": ["On", "ce", "\ufffd"],
            "token_logprobs": [-0.25, -0.5, -1.0],
            "top_logprobs": [{"On": -0.25, "In": -2.0}, None, {"€": -3.0, "\ufffd": -1.0}],
            "text_offset": starts,
        }
        check.exact(got, want, what=what, fact="lp-text")


def reply(solution, kind, **asked):
    ask = solution.Ask(kind=kind, settings=solution.Settings(), **asked)
    return solution.Reply(ask, "id-1", 1700000000, "m")


def pieces(solution, finish_reason="length"):
    made = [("On", 3, 1, None), ("", 3, 1, None), ("ce €", 3, 2, None), (" up", 3, 1, finish_reason)]
    return [solution.Piece(text, p, n, (), reason) for text, p, n, reason in made]


def logged(solution):
    """Pieces with log-probabilities, one of them without text, and an end without tokens."""
    a, b, c = tokens(solution)
    made = [("", 2, 1, (a,), None), ("Once", 2, 2, (b, c), None), ("", 2, 0, (), "stop")]
    return [solution.Piece(*each) for each in made]


USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


@task(2)
def test_whole_reply(solution):
    """a reply that is not streamed: chat and text"""
    for kind, name in (("chat", "chat.completion"), ("text", "text_completion")):
        for reason in ("stop", "length"):
            got = reply(solution, kind).whole(pieces(solution, reason))
            said = {"message": {"role": "assistant", "content": "Once € up"}}
            said = said if kind == "chat" else {"text": "Once € up"}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
            head = {"id": "id-1", "object": name, "created": 1700000000, "model": "m"}
            what = f"Reply.whole of four pieces, a {kind}"
            check.exact({k: got.get(k) for k in head}, head, what=f"the head of {what}", fact="reply-head")
            check.exact(got.get("usage"), USAGE, what=f"the usage of {what}", fact="usage")
            check.exact(got.get("choices"), [choice], what=f"the choices of {what}", fact="reply-whole")
            check.exact(
                sorted(got), sorted([*head, "choices", "usage"]), what=f"keys of {what}", fact="reply-head"
            )


@task(2)
def test_whole_reply_logprobs(solution):
    """a reply that is not streamed: with log-probabilities"""
    got = reply(solution, "chat", logprobs=True).whole(logged(solution))["choices"][0]["logprobs"]
    content = [e["token"] for e in (got or {}).get("content", [])]
    check.exact(content, ["On", "ce", "\ufffd"], what="tokens in a chat's logprobs", fact="reply-whole")
    got = reply(solution, "text", logprobs=True).whole(logged(solution))["choices"][0]["logprobs"] or {}
    told = got.get("tokens"), got.get("text_offset")
    want = ["On", "ce", "\ufffd"], [0, 2, 4]
    check.exact(told, want, what="tokens and text_offset in a text's logprobs", fact="reply-whole")


def said_by(kind, chunks):
    """What each chunk says: (text or delta, logprobs, finish_reason)."""
    choices = [c["choices"][0] for c in chunks]
    return [
        (c.get("delta" if kind == "chat" else "text"), c["logprobs"], c["finish_reason"]) for c in choices
    ]


@task(2)
def test_chunks(solution):
    """chunks: one for each piece with text, then the end"""
    for kind, name in (("chat", "chat.completion.chunk"), ("text", "text_completion")):
        made = reply(solution, kind)
        got = [list(made.chunks(piece)) for piece in pieces(solution)]
        said = [said_by(kind, chunks) for chunks in got]

        def text(t, kind=kind):
            return {"content": t} if kind == "chat" else t

        want = [[(text("On"), None, None)], [], [(text("ce €"), None, None)]]
        want += [[(text(" up"), None, None), ({} if kind == "chat" else "", None, "length")]]
        what = f"(delta or text, logprobs, finish_reason) of the chunks of each of four pieces, a {kind}"
        check.exact(said, want, what=what, fact="reply-chunks")
        head = {"id": "id-1", "object": name, "created": 1700000000, "model": "m"}
        for chunk in (chunk for chunks in got for chunk in chunks):
            check.exact(
                sorted(chunk),
                sorted([*head, "choices"]),
                what=f"keys of a {kind}'s chunk",
                fact="reply-usage",
            )
            told = {k: chunk[k] for k in head}
            check.exact(told, head, what=f"the head of a {kind}'s chunk", fact="reply-head")
            check.exact(chunk["choices"][0]["index"], 0, what="the choice's index", fact="reply-choice")


@task(2)
def test_chunks_logprobs(solution):
    """chunks: log-probabilities come with their piece"""
    made = reply(solution, "text", logprobs=True)
    got = [chunk["choices"][0] for piece in logged(solution) for chunk in made.chunks(piece)]
    told = [(c["text"], (c["logprobs"] or {}).get("text_offset"), c["finish_reason"]) for c in got]
    want = [("", [0], None), ("Once", [2, 4], None), ("", None, "stop")]
    check.exact(told, want, what="(text, text_offset, finish_reason) of a text's chunks", fact="reply-chunks")
    made = reply(solution, "chat", logprobs=True)
    got = [chunk["choices"][0] for piece in logged(solution) for chunk in made.chunks(piece)]
    told = [[e["token"] for e in c["logprobs"]["content"]] if c["logprobs"] else None for c in got]
    check.exact(told, [["On"], ["ce", "\ufffd"], None], what="tokens in each chat chunk", fact="reply-chunks")
    made = reply(solution, "chat")
    got = [chunk["choices"][0] for piece in logged(solution) for chunk in made.chunks(piece)]
    told = [(c["delta"], c["logprobs"]) for c in got]
    want = [({"content": "Once"}, None), ({}, None)]
    check.exact(told, want, what="the same pieces where no logprobs were asked for", fact="reply-choice")


@task(2)
def test_opening_and_closing(solution):
    """chunks: the role first, the usage last"""
    role = {"role": "assistant", "content": ""}
    got = said_by("chat", list(reply(solution, "chat").opening()))
    check.exact(got, [(role, None, None)], what="what a chat's opening says", fact="reply-opening")
    check.exact(list(reply(solution, "text").opening()), [], what="a text's opening", fact="reply-opening")
    for kind in ("chat", "text"):
        made = reply(solution, kind)
        list(made.opening())
        check.exact(
            list(made.closing()), [], what=f"a {kind}'s closing, no usage asked for", fact="reply-usage"
        )
        made = reply(solution, kind, stream=True, include_usage=True)
        chunks = [*made.opening(), *(c for piece in pieces(solution) for c in made.chunks(piece))]
        has = [c.get("usage", "missing") for c in chunks]
        what = f"usage in each chunk of a {kind} before the last, include_usage"
        check.exact(has, [None] * (5 if kind == "chat" else 4), what=what, fact="reply-usage")
        got = [(c.get("choices"), c.get("usage")) for c in made.closing()]
        check.exact(got, [([], USAGE)], what=f"(choices, usage) of a {kind}'s closing", fact="reply-usage")
