"""Day 2.7, the scheduler: plans for states that are set up by hand, and schedules played through with made-up
tokens. Nothing here needs a model.
"""

from dataclasses import dataclass, field

import pytest

from tinyllm.grader.testing import check, every_case, schedule_text, task

EOS = 7  # of the schedulers here; prompts and made-up tokens have other ids


# ---- states ----


@dataclass
class Asked:
    """A request as a test sets it up; `tokens` of its reply and `prefilled` say how far it is."""

    length: int
    priority: int = 0
    submitted: int = 0
    slot: int | None = None
    prefilled: int = 0
    tokens: list = field(default_factory=list)


def prompt_of(id, length):
    """A prompt whose every token says whose it is and where it stands."""
    return [100 * (id + 1) + n for n in range(length)]


def scheduler_in(solution, asked, *, at=0, slots=3, budget=6, step=4, ageing=4, to_release=()):
    """A Scheduler at step `at` that holds these requests as they are said to stand."""
    scheduler = solution.Scheduler(slots, 64, budget, step, {EOS}, ageing)
    for id, request in enumerate(asked):
        scheduler.step = request.submitted
        settings = solution.Settings(priority=request.priority)
        generation = scheduler.submit(prompt_of(id, request.length), settings)
        generation.slot, generation.prefilled = request.slot, request.prefilled
        generation.tokens = list(request.tokens)
        if request.slot is not None:
            done = request.prefilled == request.length
            generation.status = solution.Status.DECODE if done else solution.Status.PREFILL
    scheduler.step = at
    scheduler.to_release = set(to_release)
    return scheduler


# ---- what a plan is, and what it must be ----


def lines_of(step, released, decode, prefill):
    told = [f"step {step}", f"released: {', '.join(map(str, released)) or 'none'}"]
    told += [f"decode: request {i} in slot {s}, token {t} behind {n}" for i, s, t, n in decode]
    for id, slot, start, tokens, last in prefill:
        told.append(
            f"prefill: request {id} in slot {slot}, {', '.join(map(str, tokens))} behind {start}"
            + ", the last chunk" * last
        )
    return "\n".join(told)


def told(plan):
    return lines_of(
        plan.step,
        plan.released,
        [(d.id, d.slot, d.token, d.offset) for d in plan.decode],
        [(c.id, c.slot, c.start, c.tokens, c.last) for c in plan.prefill],
    )


def expected(asked, *, at=0, slots=3, budget=6, step=4, ageing=4, to_release=()):
    """The plan that the lesson's rules give, in the same words: tokens are handed out one by one."""
    taken = {r.slot: id for id, r in enumerate(asked) if r.slot is not None}
    decode = []
    for slot, id in sorted(taken.items()):
        request = asked[id]
        if request.tokens:
            decode.append((id, slot, request.tokens[-1], request.length + len(request.tokens) - 1))
    left, free, prefill = budget - len(decode), sorted(set(range(slots)) - set(taken)), []
    for _, id in sorted(
        (r.submitted + r.priority * ageing, id) for id, r in enumerate(asked) if not r.tokens
    ):
        request, tokens = asked[id], []
        if request.slot is None and not free:
            continue
        while left and len(tokens) < step and request.prefilled + len(tokens) < request.length:
            tokens.append(prompt_of(id, request.length)[request.prefilled + len(tokens)])
            left -= 1
        if tokens:
            slot = free.pop(0) if request.slot is None else request.slot
            last = request.prefilled + len(tokens) == request.length
            prefill.append((id, slot, request.prefilled, tokens, last))
    return lines_of(at, sorted(to_release), decode, prefill)


def stand(asked, slots=3, budget=6, step=4, **_):
    """A state in words."""
    told = []
    for id, r in enumerate(asked):
        where = "waits" if r.slot is None else f"in slot {r.slot}, {r.prefilled} of it run"
        where = f"decodes in slot {r.slot}" if r.tokens else where
        told.append(
            f"request {id}: prompt of {r.length}, priority {r.priority}, since {r.submitted}, {where}"
        )
    return f"{slots} slots, budget {budget}, prefill_step {step}; " + "; ".join(told)


def check_plan(solution, asked, *, fact, **state):
    scheduler = scheduler_in(solution, asked, **state)
    what = f"plan() with {stand(asked, **state)}"
    check.exact(told(scheduler.plan()), expected(asked, **state), what=what, fact=fact)
    return scheduler


# ---- task 1: the plan ----


@task(1)
def test_submit(solution):
    """requests come in: ids, what is kept, who waits"""
    scheduler = solution.Scheduler(2, 16, 8, 4)
    scheduler.step = 3
    prompt, settings = [5, 6, 7], solution.Settings(max_tokens=2, priority=1)
    first, second = scheduler.submit(prompt, settings), scheduler.submit((8,))
    prompt.append(9)
    what = "submit([5, 6, 7], settings) and submit((8,)) before step 3: "
    check.exact([first.id, second.id], [0, 1], what=what + "ids", fact="submit")
    check.exact(first.prompt, (5, 6, 7), what=what + "prompt", fact="submit")
    kept = (first.settings, first.submitted, first.status, first.slot, first.tokens, first.finish_reason)
    want = (settings, 3, solution.Status.WAITING, None, [], None)
    check.exact(kept, want, what=what + "settings, submitted, status, slot, tokens, finish_reason")
    same = scheduler.generations.get(0) is first and scheduler.generations.get(1) is second
    check.exact(same, True, what=what + "whether generations holds the results, by id", fact="submit")
    check.exact([g.id for g in scheduler.waiting], [0, 1], what=what + "waiting", fact="submit")


@task(1)
def test_submit_refuses(solution):
    """a prompt that is empty, or leaves no room for a reply, is refused with a reason; the rest go on"""
    scheduler = solution.Scheduler(2, 8, 8, 4)
    scheduler.submit([1, 2])
    for length in (0, 8, 30):
        what = f"submit of {length} tokens, max_seq_len 8"
        try:
            scheduler.submit([1] * length)
        except solution.RequestRefused as refused:
            if length:
                numbers = [number in str(refused) for number in (str(length), "8")]
                shown = f"whether the message of {what} has {length} and 8 in it: {refused}"
                check.exact(numbers, [True, True], what=shown, fact="refused")
        else:
            check.raises(solution.RequestRefused, lambda: None, what=what)
        check.exact(list(scheduler.generations), [0], what=f"ids in generations after {what}", fact="refused")
    generation = scheduler.submit([1] * 7)
    check.exact(generation.id, 1, what="id of a prompt of 7 tokens after three refusals", fact="refused")


@task(1)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
def test_plan_of_one_prompt(solution, length):
    """one prompt: its first chunk, and the one behind four tokens"""
    for prefilled in range(0, length, 4):
        slot = 0 if prefilled else None
        check_plan(solution, [Asked(length, slot=slot, prefilled=prefilled)], fact="plan-prefill")


@task(1)
def test_plan_budget(solution):
    """several prompts share the budget: whole chunks while it lasts, then what is left"""
    for budget in (3, 4, 5, 7, 8, 9, 30):
        check_plan(solution, [Asked(6), Asked(2), Asked(7)], budget=budget, fact="plan-prefill")


@task(1)
def test_plan_decode_first(solution):
    """every request that decodes runs, and its token counts against the budget"""
    replies = [Asked(2, slot=2, prefilled=2, tokens=[31]), Asked(3, slot=0, prefilled=3, tokens=[32, 33, 34])]
    for budget in (3, 4, 6):
        check_plan(solution, [*replies, Asked(9)], budget=budget, fact="plan-decode")
    check_plan(solution, replies, fact="plan-decode")


@task(1)
def test_plan_slots(solution):
    """slots: the lowest that is free, whoever had it; and nobody gets one that is taken"""
    busy = Asked(2, slot=1, prefilled=2, tokens=[31])
    check_plan(solution, [busy, Asked(2), Asked(1), Asked(1)], to_release=(2, 0), fact="plan-slots")
    check_plan(solution, [busy, Asked(1), Asked(1)], slots=4, to_release=(3,), fact="plan-released")
    full = [Asked(2, slot=s, prefilled=2, tokens=[31 + s]) for s in (1, 0, 2)]
    check_plan(solution, [*full, Asked(2)], budget=9, fact="plan-slots")
    check_plan(solution, [], to_release=(2, 1), fact="plan-released")


@task(1)
def test_plan_passes_over(solution):
    """a request without a slot is passed over: one behind it has a slot and goes on"""
    asked = [
        Asked(9, priority=1, slot=0, prefilled=4),
        Asked(3, slot=1, prefilled=3, tokens=[31]),
        Asked(2),  # goes before request 0, and no slot is free
    ]
    check_plan(solution, asked, slots=2, fact="plan-slots")


@task(1)
def test_plan_order(solution):
    """priorities: the smaller goes first, and of equals the one that came first"""
    check_plan(solution, [Asked(3, 1), Asked(3, 0), Asked(3, -1), Asked(3, 0)], fact="rank")
    check_plan(solution, [Asked(8, 2, slot=0, prefilled=4), Asked(3, 0)], budget=4, fact="rank")


@task(1)
def test_plan_ageing(solution):
    """ageing: a unit of priority is worth as many steps of waiting, whatever the step"""
    for since, at in ((3, 3), (4, 4), (5, 5), (5, 90)):
        asked = [Asked(3, 1, submitted=0), Asked(3, 0, submitted=since)]
        check_plan(solution, asked, at=at, budget=3, fact="rank")
    asked = [Asked(3, 2, submitted=1), Asked(3, 0, submitted=8), Asked(3, 1, submitted=6)]
    check_plan(solution, asked, at=9, fact="rank")
    rank = scheduler_in(solution, [Asked(3, 2, submitted=1)]).generations[0]
    got = solution.Scheduler(3, 64, 6, 4, ageing=4).rank(rank)
    check.exact(got, (9, 0), what="rank of request 0, priority 2, since step 1, ageing 4", fact="rank")


@task(1)
def test_plan_only_reads(solution):
    """asked twice, the same plan; it is a value and nothing has changed"""
    asked = [Asked(2, slot=1, prefilled=2, tokens=[31]), Asked(3), Asked(9, 1)]
    scheduler = scheduler_in(solution, asked, to_release=(0,))
    first, second = scheduler.plan(), scheduler.plan()
    what = f"plan() with {stand(asked)}"
    check.exact(told(second), told(first), what=f"the second {what}", fact="plan-reads")
    g = scheduler.generations
    want = solution.Plan(
        0,
        (0,),
        (
            solution.Chunk(1, 0, 0, (200, 201, 202), True, g[1].settings),
            solution.Chunk(2, 2, 0, (300, 301), False, g[2].settings),
        ),
        (solution.Decode(0, 1, 31, 2, g[0].settings),),
    )
    check.exact(first == want, True, what=f"whether {what} is {want}", fact="plan-reads")
    how = [(g[i].status.value, g[i].slot, g[i].prefilled) for i in g]
    want = [("decode", 1, 2), ("waiting", None, 0), ("waiting", None, 0)]
    check.exact(how, want, what=f"how the requests stand after {what}", fact="plan-reads")
    check.exact(scheduler.to_release, {0}, what=f"to_release after {what}", fact="plan-reads")


@task(1)
def test_plan_random(solution):
    """random states: the smallest whose plan is wrong"""

    def make(pick):
        slots = pick(1, 3)
        state = {"slots": slots, "budget": slots + pick(0, 6), "step": pick(1, 4), "ageing": pick(0, 3)}
        asked, free = [], list(range(slots))
        picked = pick.several(
            # Its kind: it waits, its prompt is half run, it decodes.
            lambda pick: (Asked(pick(1, 5), pick(0, 2), pick(0, 4)), pick(0, 2), pick(0, 9), pick(1, 3)),
            0,
            5,
        )
        for request, kind, where, done in sorted(picked, key=lambda given: given[0].submitted):
            if kind and free and (kind == 2 or request.length > 1):
                request.slot = free.pop(where % len(free))
                request.prefilled = request.length if kind == 2 else min(done, request.length - 1)
                request.tokens = [31] * done if kind == 2 else []
            asked.append(request)
        return asked, state | {"to_release": free[: pick(0, len(free))], "at": 4}

    def run(case):
        asked, state = case
        check_plan(solution, asked, fact="plan-prefill", **state)

    every_case(make, run, examples=30, shown=lambda case: stand(case[0], **case[1]))


# ---- playing a schedule through ----


def made_up(id, number, reply):
    """Token `number` of request id's reply; EOS when it has had all of them."""
    return EOS if number >= reply else 1000 * (id + 1) + number


def results_of(plan, replies, done):
    """The made-up tokens that a plan gives; `done` counts those of each request."""
    results = {}
    for id in [d.id for d in plan.decode] + [c.id for c in plan.prefill if c.last]:
        results[id] = made_up(id, done.get(id, 0), replies[id])
        done[id] = done.get(id, 0) + 1
    return results


def play(scheduler, replies, most=60):
    """Plan and commit until there is no work. All plans."""
    plans, done = [], {}
    while scheduler.has_work and len(plans) < most:
        plans.append(scheduler.plan())
        scheduler.commit(plans[-1], results_of(plans[-1], replies, done))
        scheduler.check()
    return plans


# ---- task 2: what came of it ----


@task(2)
def test_long_prompt_holds_up_nobody(solution):
    """while a long prompt runs, every reply gets a token in each step, and no step is over the budget"""
    scheduler = solution.Scheduler(3, 64, 6, 4, {EOS})
    for id, length in enumerate((2, 2, 17)):
        scheduler.submit(prompt_of(id, length))
    plans = play(scheduler, [6, 4, 2])
    what = "schedule of prompts of 2, 2 and 17 tokens, replies of 6, 4 and 2, 3 slots, budget 6, chunks of 4"
    want = (
        "step    0     1     2     3     4     5   6   7\n"
        "slot 0  P0:2  D0    D0    D0    D0    D0  D0  .\n"
        "slot 1  P1:2  D1    D1    D1    D1    .   .   .\n"
        "slot 2  P2:2  P2:4  P2:4  P2:4  P2:3  D2  D2  ."
    )
    check.exact(schedule_text(plans, 3), want, what=what, fact="plan-decode")
    most = max(plan.tokens for plan in plans)
    check.exact(most <= 6, True, what=f"whether no step runs more than 6 tokens: {most}, {what}")


@task(2)
def test_commit_chunks(solution):
    """chunks have run: slots, tokens of the prompt, status; with the last one the first token"""
    scheduler = solution.Scheduler(2, 64, 6, 4, {EOS})
    long, short = scheduler.submit(prompt_of(0, 9)), scheduler.submit(prompt_of(1, 2))
    seen = []
    for token in ({1: 41}, {1: 42}, {1: 43, 0: 31}):
        plan = scheduler.plan()
        what = f"ids that get a token in step {plan.step}, prompts of 9 and 2 tokens, budget 6, chunks of 4"
        check.exact(sorted(plan.ids_sampled), sorted(token), what=what, fact="plan-decode")
        grown = scheduler.commit(plan, token)
        scheduler.check()
        ids = [generation.id for generation in grown]
        what = f"ids of the requests that commit(plan, {token}) returns"
        check.exact(ids, list(token), what=what, fact="commit-result")
        seen.append([(g.status.value, g.slot, g.prefilled, list(g.tokens)) for g in (long, short)])
    want = [
        [("prefill", 0, 4, []), ("decode", 1, 2, [41])],
        [("prefill", 0, 8, []), ("decode", 1, 2, [41, 42])],
        [("decode", 0, 9, [31]), ("decode", 1, 2, [41, 42, 43])],
    ]
    for step, (got, right) in enumerate(zip(seen, want, strict=True)):
        what = f"status, slot, prefilled and tokens of prompts of 9 and 2 tokens after step {step}"
        check.exact(got, right, what=what, fact="commit-chunks")
    check.exact(scheduler.step, 3, what="step after three commits", fact="commit-chunks")


@task(2)
@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reply", "want"),
    [
        (3, 4, 9, (4, "length")),
        (3, 1, 9, (1, "length")),
        (3, 9, 2, (2, "stop")),
        (3, 9, 0, (0, "stop")),
        (3, 4, 3, (3, "stop")),
        (5, 9, 9, (3, "length")),
        (7, 9, 9, (1, "length")),
        (7, 9, 0, (0, "stop")),
    ],
)
def test_ends(solution, prompt, max_tokens, reply, want):
    """a reply ends: at an EOS, at max_tokens, at max_seq_len"""
    scheduler = solution.Scheduler(2, 8, 6, 4, {EOS, 9})
    generation = scheduler.submit(prompt_of(0, prompt), solution.Settings(max_tokens=max_tokens))
    play(scheduler, [reply])
    what = (
        f"tokens and finish_reason: prompt of {prompt}, max_tokens {max_tokens}, max_seq_len 8, "
        + f"the model's reply has {reply} tokens and an EOS"
    )
    got = (generation.tokens, generation.finish_reason)
    right = ([made_up(0, n, reply) for n in range(want[0])], want[1])
    check.exact(got, right, what=what, fact="commit-tokens")
    check.exact(generation.status, solution.Status.FINISHED, what=f"status, {what}", fact="finish")
    check.exact(scheduler.generations, {}, what=f"generations, {what}", fact="finish")


@task(2)
def test_slots_come_free(solution):
    """a slot that is free is named by the next plan, once, and used again in that very plan"""
    scheduler = solution.Scheduler(2, 64, 4, 4, {EOS})
    for id, length in enumerate((2, 1, 3, 2)):
        scheduler.submit(prompt_of(id, length))
    plans = play(scheduler, [2, 0, 1, 1])
    what = "schedule of prompts of 2, 1, 3 and 2 tokens, replies of 2, 0, 1 and 1, 2 slots, budget 4"
    want = (
        "step    0     1     2   3     4   5\n"
        "slot 0  P0:2  D0    D0  P3:2  D3  .\n"
        "slot 1  P1:1  P2:3  D2  .     .   ."
    )
    check.exact(schedule_text(plans, 2), want, what=what, fact="finish")
    released = [plan.released for plan in plans]
    want = [(), (1,), (), (0, 1), (), (0,)]
    check.exact(released, want, what=f"released in each step, {what}", fact="commit-released")


@task(2)
def test_slot_used_for_one_step(solution):
    """a request that begins and ends in one step: its slot was just released, and is again"""
    scheduler = solution.Scheduler(1, 64, 4, 4, {EOS})
    for id in range(3):
        scheduler.submit(prompt_of(id, 2))
    released = [plan.released for plan in play(scheduler, [0, 0, 0])]
    what = "released in each step: 1 slot, three prompts of 2 tokens whose replies are an EOS at once"
    check.exact(released, [(), (0,), (0,), (0,)], what=what, fact="commit-released")


@task(2)
def test_cancel(solution):
    """cancelled while it waits, while its prompt runs, while it decodes, and when it has ended"""
    for stand, steps, slots in (("waiting", 0, set()), ("prefill", 1, {0}), ("decode", 3, {0})):
        scheduler = solution.Scheduler(2, 64, 6, 4, {EOS})
        generation, other = scheduler.submit(prompt_of(0, 9)), scheduler.submit(prompt_of(1, 2))
        done = {}
        for _ in range(steps):
            plan = scheduler.plan()
            scheduler.commit(plan, results_of(plan, [9, 9], done))
        what = f"status of a request whose prompt has 9 tokens, after {steps} steps of 6"
        check.exact(generation.status.value, stand, what=what, fact="commit-chunks")
        got = scheduler.cancel(0)
        what = f"after cancel of a request that was in {stand}"
        check.exact(got, True, what=f"the result of cancel of a request in {stand}", fact="finish-twice")
        got = (generation.status.value, generation.slot, generation.finish_reason)
        check.exact(got, ("finished", None, "cancelled"), what=f"status, slot, finish_reason {what}")
        check.exact(scheduler.to_release, slots, what=f"to_release {what}", fact="finish")
        check.exact(list(scheduler.generations), [1], what=f"ids in generations {what}", fact="finish")
        check.exact(other.finish_reason, None, what=f"finish_reason of the other {what}", fact="finish")
        scheduler.check()
        what = 'finish(0, "stop") of a request that was cancelled before'
        check.exact(scheduler.finish(0, "stop"), False, what=f"result of {what}", fact="finish-twice")
        check.exact(scheduler.cancel(17), False, what="result of cancel(17), which never was")
        what = f"after {what}"
        check.exact(generation.finish_reason, "cancelled", what=f"finish_reason {what}", fact="finish-twice")
        check.exact(scheduler.to_release, slots, what=f"to_release {what}", fact="finish")


@task(2)
def test_cancel_meanwhile(solution):
    """cancelled between plan and commit: nothing comes of it, and the slot is released"""
    for stand, steps in (("waiting", 0), ("prefill", 1), ("decode", 3)):
        scheduler = solution.Scheduler(1, 64, 6, 4, {EOS})
        generation, done = scheduler.submit(prompt_of(0, 9)), {}
        for _ in range(steps):
            plan = scheduler.plan()
            scheduler.commit(plan, results_of(plan, [9], done))
        what = f"status of a request whose prompt has 9 tokens, after {steps} steps of 6"
        check.exact(generation.status.value, stand, what=what, fact="commit-chunks")
        before = list(generation.tokens)
        plan = scheduler.plan()
        scheduler.cancel(0)
        grown = scheduler.commit(plan, results_of(plan, [9], done))
        check.exact(grown, [], what="result of commit, its only request cancelled", fact="commit-result")
        what = f"after cancel of a request in {stand}, between plan and commit"
        got = (generation.status.value, generation.slot, generation.tokens)
        check.exact(got, ("finished", None, before), what=f"status, slot, tokens {what}", fact="meanwhile")
        check.exact(scheduler.plan().released, (0,), what=f"released {what}", fact="meanwhile")
        scheduler.check()


@task(2)
def test_commit_refuses(solution):
    """a plan of another step, and tokens for other requests than the plan's, raise and change nothing"""
    scheduler = solution.Scheduler(2, 64, 6, 4, {EOS})
    scheduler.submit(prompt_of(0, 3))
    scheduler.submit(prompt_of(1, 9))
    plan = scheduler.plan()
    for results in ({}, {0: 31, 1: 41}, {1: 41}, {0: 31, 5: 51}):
        what = f"commit(plan, {results}) of a plan that gives request 0 a token"
        check.raises(ValueError, lambda r=results: scheduler.commit(plan, r), what=what)
        check.exact(told(scheduler.plan()), told(plan), what=f"plan() after {what}", fact="commit-refuses")
    scheduler.commit(plan, {0: 31})
    after = told(scheduler.plan())
    check.raises(ValueError, lambda: scheduler.commit(plan, {0: 31}), what="commit of one plan twice")
    check.exact(told(scheduler.plan()), after, what="plan() after commit of one plan twice")


# ---- random schedules ----


@dataclass
class Case:
    slots: int
    budget: int
    step: int
    ageing: int
    max_seq_len: int
    requests: list  # (arrival, length, reply, max_tokens, priority, step at which it is cancelled or 0)

    def __str__(self):
        requests = "; ".join(
            f"request {id} in step {arrival}: prompt {length}, reply {reply}, max_tokens {most}, "
            + f"priority {priority}"
            + f", cancelled in step {cancel}" * bool(cancel)
            for id, (arrival, length, reply, most, priority, cancel) in enumerate(self.requests)
        )
        return (
            f"{len(self.requests)} requests, {self.slots} slots, budget {self.budget}, chunks of {self.step}"
            f", ageing {self.ageing}, max_seq_len {self.max_seq_len}: {requests}"
        )


def make_case(pick):
    def request(pick):
        return pick(0, 4), pick(1, 6), pick(0, 5), pick(1, 4), pick(0, 2), pick(0, 3) * pick(0, 3)

    slots = pick(1, 3)
    case = Case(slots, slots + pick(0, 4), pick(1, 4), pick(0, 3), 9, pick.several(request, 1, 5))
    case.requests.sort(key=lambda request: request[0])
    return case


def work_of(generation, max_seq_len):
    """Tokens that a request may still run."""
    room = max_seq_len - len(generation.prompt)
    reply = min(generation.settings.max_tokens, room) - len(generation.tokens)
    return len(generation.prompt) - generation.prefilled + reply


def goes_before(one, other, ageing):
    def rank(g):
        return g.submitted + g.settings.priority * ageing, g.id

    return rank(one) < rank(other)


class Played:
    """A random case, played through, and the first thing that went wrong in it; `rule` is the fact broken."""

    def __init__(self, solution, case):
        self.solution, self.case = solution, case
        self.scheduler = solution.Scheduler(
            case.slots, case.max_seq_len, case.budget, case.step, {EOS}, case.ageing
        )
        self.generations, self.done, self.ran, self.slot = [], {}, {}, {}
        self.ahead = {}  # of each request: tokens of those that may go before it
        self.waited = {}  # steps without a slot
        self.freed = set()
        self.rule = "no-starvation"

    def breaks(self, rule, told):
        self.rule = rule
        return told

    def first_wrong(self):
        case, scheduler = self.case, self.scheduler
        last = max(arrival for arrival, *_ in case.requests)
        for step in range(200):
            for arrival, length, _, most, priority, _ in case.requests:
                if arrival == step:
                    settings = self.solution.Settings(max_tokens=most, priority=priority)
                    self.submit(prompt_of(len(self.generations), length), settings)
            if step > last and not scheduler.has_work:
                return self.at_the_end()
            self.cancel(step, odd=False)
            plan = scheduler.plan()
            wrong = self.wrong_in(plan)
            self.cancel(step, odd=True)
            if not wrong:
                results = results_of(plan, [r[2] for r in case.requests], self.done)
                before = {g.id: g.slot for g in scheduler.active}
                scheduler.commit(plan, results)
                scheduler.check()
                now = {g.id: g.slot for g in scheduler.active}
                given = before | {c.id: c.slot for c in plan.prefill}
                self.freed |= {slot for id, slot in given.items() if id not in now}
            if wrong:
                return f"step {step}: {wrong}"
        return "200 steps, and it has not ended"

    def submit(self, prompt, settings):
        generation = self.scheduler.submit(prompt, settings)
        for other in self.generations:
            if goes_before(generation, other, self.case.ageing) and other.id in self.ahead:
                self.ahead[other.id] += work_of(generation, self.case.max_seq_len)
        self.ahead[generation.id] = sum(
            work_of(g, self.case.max_seq_len)
            for g in self.scheduler.generations.values()
            if g is not generation and (g.slot is not None or goes_before(g, generation, self.case.ageing))
        )
        self.waited[generation.id] = 0
        self.generations.append(generation)

    def cancel(self, step, *, odd):
        """Those of odd ids are cancelled between plan and commit."""
        for generation, (*_, at) in zip(list(self.generations), self.case.requests, strict=False):
            if at and at == step and generation.id % 2 == odd:
                if generation.slot is not None:
                    self.freed.add(generation.slot)
                self.scheduler.cancel(generation.id)

    def wrong_in(self, plan):
        case, live = self.case, self.scheduler.generations
        if plan.tokens > case.budget:
            return self.breaks("plan-prefill", f"{plan.tokens} tokens run, over the budget")
        if set(plan.released) != self.freed:
            told = f"slots {sorted(plan.released)} are released; free since are {sorted(self.freed)}"
            return self.breaks("finish", told)
        self.freed = set()
        decoding = {g.id for g in live.values() if g.tokens}
        if {d.id for d in plan.decode} != decoding:
            told = f"requests {sorted(decoding)} decode, and the plan has {[d.id for d in plan.decode]}"
            return self.breaks("plan-decode", told)
        slots = [d.slot for d in plan.decode] + [c.slot for c in plan.prefill]
        if len(set(slots)) < len(slots):
            return self.breaks("plan-slots", f"a slot is used twice: {slots}")
        for part in (*plan.decode, *plan.prefill):
            if self.slot.setdefault(part.id, part.slot) != part.slot:
                told = f"request {part.id} moved from slot {self.slot[part.id]} to {part.slot}"
                return self.breaks("plan-slots", told)
        for chunk in plan.prefill:
            whole, ran = live[chunk.id].prompt, self.ran.setdefault(chunk.id, 0)
            end = ran + len(chunk.tokens)
            if (chunk.start, tuple(chunk.tokens)) != (ran, whole[ran:end]) or not 0 < end - ran <= case.step:
                told = f"request {chunk.id} runs {chunk.tokens} at {chunk.start} behind {ran} tokens"
                return self.breaks("commit-chunks", told)
            self.ran[chunk.id] = end
        for d in plan.decode:
            number = self.done[d.id] - 1
            right = made_up(d.id, number, 99), len(live[d.id].prompt) + number
            if (d.token, d.offset) != right:
                told = f"request {d.id} decodes {d.token} at {d.offset}, not {right[0]} at {right[1]}"
                return self.breaks("commit-tokens", told)
        for id in live:
            if id not in self.slot:
                self.waited[id] += 1
                if self.waited[id] > self.ahead[id] // case.slots:
                    return f"request {id} waits for step {self.waited[id]}, {self.ahead[id]} tokens before it"
        return ""

    def at_the_end(self):
        scheduler = self.scheduler
        if scheduler.generations or scheduler.to_release:
            told = f"at the end {sorted(scheduler.generations)} are left, {scheduler.to_release} to release"
            return self.breaks("finish", told)
        for g, (_, length, reply, most, _, cancel) in zip(self.generations, self.case.requests, strict=True):
            room = min(most, self.case.max_seq_len - length)
            want = [made_up(g.id, n, reply) for n in range(min(reply, room))]
            reason = "stop" if reply < room else "length"
            if cancel and g.finish_reason == "cancelled":
                continue
            if (g.tokens, g.finish_reason) != (want, reason):
                told = f"request {g.id} ends with {g.tokens}, {g.finish_reason}; not {want}, {reason}"
                return self.breaks("commit-tokens", told)
        return ""


@task(2)
@pytest.mark.parametrize("cancels", [False, True], ids=["no cancels", "cancels"])
def test_random_schedules(solution, cancels):
    """random arrivals, lengths, priorities and cancels: the smallest schedule that breaks a rule"""

    def make(pick):
        case = make_case(pick)
        if not cancels:
            case.requests = [(*request[:-1], 0) for request in case.requests]
        return case

    def run(case):
        played = Played(solution, case)
        wrong = played.first_wrong()
        what = f"the first step that breaks a rule, {case}"
        check.exact(wrong, "", what=what, fact=played.rule, why=f"{wrong}." if wrong else "")

    every_case(make, run, examples=30, shown=str)


@task(2)
def test_nobody_starves(solution):
    """urgent requests come in every step for ever, and one of priority 2 gets its turn"""
    for ageing in (0, 3, 5):
        scheduler = solution.Scheduler(1, 16, 4, 4, {EOS}, ageing)
        done, patient = {}, None
        for step in range(200):
            scheduler.submit(prompt_of(len(done) % 9, 1), solution.Settings(max_tokens=1))
            if step == 1:
                patient = scheduler.submit(prompt_of(9, 2), solution.Settings(max_tokens=1, priority=2))
            plan = scheduler.plan()
            scheduler.commit(plan, dict.fromkeys(plan.ids_sampled, 31))
            if patient is not None and patient.finish_reason:
                break
        # One of them runs in each step; before the patient one go those of the steps before 1 + 2 * ageing.
        want = max(2, 1 + 2 * ageing)
        what = f"the step in which a request of priority 2 from step 1 runs, ageing {ageing}, one slot"
        check.exact(step, want, what=what, fact="no-starvation")
