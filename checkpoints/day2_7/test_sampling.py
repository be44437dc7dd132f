"""Day 2.7, a token for each request: rows of a batch with settings and seeds of their own.

Draws are compared with the distribution they must come from (check.draws): hundreds of rows, each a request
with a seed of its own, or one request's tokens one after the other.
"""

import mlx.core as mx
import numpy as np
import pytest

from tinyllm.grader.testing import as_float64, check, dtype_name, every_dtype, require, sample, task

F32 = mx.float32
COUNT = 200  # draws
V = 9


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def distribution(logits, temperature=1.0, top_k=None, top_p=None, min_p=0.0):
    """What tokens must come from, (V,): filters on the model's probabilities, then temperature."""
    logprobs = log_softmax(logits)
    p = np.exp(logprobs)
    order = np.argsort(-p)
    kept = np.ones(len(p), dtype=bool)
    if top_k is not None:
        kept[order[top_k:]] = False
    if top_p is not None:
        kept[order[np.cumsum(p[order]) - p[order] >= top_p]] = False
    kept &= p >= min_p * p.max()
    q = np.where(kept, np.exp(logprobs / temperature), 0)
    return q / q.sum()


def penalised(logits, history, penalty):
    out = logits.copy()
    for token in set(history):
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    return out


def logits_of(seed, rows=None, dtype=F32):
    return sample((V,) if rows is None else (rows, V), dtype, seed=seed, scale=2.0)


def drawn(solution, logits, settings, histories):
    """The tokens of `sample` for one row of logits that every request has, as an array."""
    rows = mx.broadcast_to(logits, (len(settings), V))
    return mx.array([s.token for s in solution.sample(rows, settings, histories)])


@task(3)
@every_dtype
def test_greedy(solution, dtype):
    """temperature 0: the largest logit of each row"""
    logits, x = logits_of(1, 5, dtype)
    got = solution.sample(logits, [solution.Settings()] * 5, [[1, 2]] * 5)
    what = f"tokens of sample(logits, ..), logits (5, {V}) {dtype_name(dtype)}, temperature 0"
    check.exact([s.token for s in got], x.argmax(axis=-1).tolist(), what=what, fact="choose")
    one = solution.choose(logits[3], solution.Settings(), [1, 2])
    check.ids(one, x[3].argmax(), what=f"choose(logits, Settings(), [1, 2]), logits ({V},)", fact="choose")


@task(3)
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.4},
        {"temperature": 4.0, "top_k": 4},
        {"temperature": 4.0, "top_p": 0.8},
        {"temperature": 4.0, "min_p": 0.1},
    ],
    ids=lambda given: " ".join(f"{k}={v}" for k, v in given.items()),
)
def test_draws(solution, given):
    """requests with seeds of their own: the tokens come out as often as they should"""
    logits, x = logits_of(2)
    require(len(set(distribution(x, **given))) > 2, "the distribution is no test")
    settings = [solution.Settings(seed=seed, **given) for seed in range(COUNT)]
    got = drawn(solution, logits, settings, [[3, 4]] * COUNT)
    what = f"sample with {given} and the seeds 0 to {COUNT - 1}"
    check.draws(got, distribution(x, **given), count=COUNT, what=what, fact="choose", slack=1e-4)


@task(3)
def test_draws_along_a_reply(solution):
    """one request: each of its tokens is another draw"""
    logits, x = sample((V,), F32, seed=3, scale=0.5)
    require(distribution(x).max() < 0.5, "one token is nearly sure")
    settings = [solution.Settings(temperature=1.0, seed=11)] * COUNT
    history = [0] * (COUNT + 5)
    got = drawn(solution, logits, settings, [history[: n + 5] for n in range(COUNT)])
    what = f"sample with seed 11 behind 5 to {COUNT + 4} tokens"
    check.draws(got, distribution(x), count=COUNT, what=what, fact="choose-seed", slack=1e-4)


@task(3)
def test_seeded(solution):
    """a seed: the same token again, in any row, beside anybody, whatever has been drawn before"""
    logits, _ = logits_of(4, 40)
    logits = logits * 0.2  # so that many tokens are likely
    settings = [solution.Settings(temperature=1.0, seed=seed) for seed in range(40)]
    histories = [[0] * (1 + n % 5) for n in range(40)]
    first = [s.token for s in solution.sample(logits, settings, histories)]
    mx.random.seed(99)
    mx.eval(mx.random.uniform(shape=(7,)))
    order = np.random.default_rng(0).permutation(40)
    chosen = [int(i) for i in order[:25]]
    again = solution.sample(
        logits[mx.array(chosen)], [settings[i] for i in chosen], [histories[i] for i in chosen]
    )
    what = "tokens of 25 of 40 requests with seeds, in other rows of another batch"
    check.exact([s.token for s in again], [first[i] for i in chosen], what=what, fact="choose-seed")
    others = [solution.Settings(temperature=1.0, seed=seed + 1000) for seed in range(40)]
    same = sum(a.token == b for a, b in zip(solution.sample(logits, others, histories), first, strict=True))
    what = f"whether other seeds give other tokens: {same} of 40 are the same"
    check.exact(same < 30, True, what=what, fact="choose-seed")
    large = [solution.Settings(temperature=1.0, seed=seed) for seed in (-1, 2**63, 2**40 + 3)]
    got = [s.token for s in solution.sample(logits[:3], large, histories[:3])]
    again = [s.token for s in solution.sample(logits[:3], large, histories[:3])]
    check.exact(again, got, what="tokens with the seeds -1, 2**63 and 2**40 + 3, drawn again")


@task(3)
def test_global_state(solution):
    """a seeded draw leaves MLX's global random state alone; one without a seed uses it"""
    logits, x = logits_of(5)

    def after(seed):
        mx.random.seed(5)
        for n in range(3):
            mx.eval(solution.choose(logits, solution.Settings(temperature=1.0, seed=seed), [1] * n))
        return mx.random.uniform(shape=(4,)).tolist()

    mx.random.seed(5)
    want = mx.random.uniform(shape=(4,)).tolist()
    what = "mx.random.uniform after mx.random.seed(5) and three choose with a seed of their own"
    check.exact(after(1), want, what=what, fact="choose-seed")
    mx.random.seed(6)
    settings = [solution.Settings(temperature=1.0)] * COUNT
    got = drawn(solution, logits, settings, [[1]] * COUNT)
    what = "sample without a seed"
    check.draws(got, distribution(x), count=COUNT, what=what, fact="choose-seed", slack=1e-4)
    mx.random.seed(6)
    again = drawn(solution, logits, settings[:50], [[1]] * 50)
    check.ids(again, np.array(got)[:50], what="sample without a seed, after mx.random.seed(6) again")


@task(3)
@every_dtype
def test_penalty(solution, dtype):
    """the repetition penalty is for a request's own tokens, and comes first"""
    logits, x = logits_of(6, dtype=dtype)
    best = int(x.argmax())
    require(x[best] > 0 and penalised(x, [best], 4.0).argmax() != best, "the penalty changes nothing")
    settings = [solution.Settings(repetition_penalty=4.0), solution.Settings(), solution.Settings()]
    settings += [solution.Settings(repetition_penalty=4.0)]
    histories = [[best, best, 0], [best], [], [(best + 1) % V]]
    got = solution.sample(mx.broadcast_to(logits, (4, V)), settings, histories)
    want = [
        int(penalised(x, history, s.repetition_penalty).argmax())
        for s, history in zip(settings, histories, strict=True)
    ]
    what = f"tokens of four requests with the same logits: penalties 4, 1, 1, 4 and histories {histories}"
    check.exact([s.token for s in got], want, what=what, fact="choose")


@task(3)
def test_penalty_before_draws(solution):
    """penalty, filters and temperature together"""
    logits, x = logits_of(7)
    history = np.argsort(-x)[:2].tolist()
    given = {"temperature": 1.5, "top_k": 4, "top_p": 0.9}
    settings = [solution.Settings(repetition_penalty=2.0, seed=n, **given) for n in range(COUNT)]
    got = drawn(solution, logits, settings, [history] * COUNT)
    want = distribution(penalised(x, history, 2.0), **given)
    require(abs(want - distribution(x, **given)).max() > 0.1, "the penalty changes nothing")
    what = f"sample with {given}, penalty 2 and the two most probable tokens in the history"
    check.draws(got, want, count=COUNT, what=what, fact="choose", slack=1e-4)


@task(3)
@every_dtype
def test_logprobs(solution, dtype):
    """log-probabilities: of the model's own distribution, for the token and for the alternatives asked for"""
    logits, x = logits_of(8, 4, dtype)
    history = np.argsort(-x, axis=-1)[:, 0].tolist()
    settings = [
        solution.Settings(logprobs=3),
        solution.Settings(logprobs=5, temperature=0.3, top_k=2, seed=1),
        solution.Settings(),
        solution.Settings(logprobs=1, repetition_penalty=3.0),
    ]
    got = solution.sample(logits, settings, [[token] for token in history])
    want = log_softmax(x)
    require(len(np.unique(x[0])) == V, "two logits are equal")
    for row, (sampled, setting) in enumerate(zip(got, settings, strict=True)):
        what = f"row {row} of sample, {setting.logprobs} alternatives, {dtype_name(dtype)}: "
        told = {"dtype": F32, "terms": V, "roundings": 8, "fact": "sample-logprobs"}
        check.close(
            mx.array(sampled.logprob), want[row][sampled.token], what=what + "logprob", magnitude=8.0, **told
        )
        best = np.argsort(-x[row], kind="stable")[: setting.logprobs]
        values = mx.array([value for _, value in sampled.top], dtype=F32)
        check.close(values, want[row][best], what=what + "values of top", magnitude=8.0, **told)
        if dtype == F32:  # rounded logits may be equal
            ids = [token for token, _ in sampled.top]
            check.exact(ids, best.tolist(), what=what + "ids of top", fact="sample-logprobs")
        kinds = [type(sampled.token), type(sampled.logprob), type(sampled.top)]
        check.exact(kinds, [int, float, tuple], what=what + "types of token, logprob, top")


@task(3)
def test_reads(solution):
    """the logits stay as they were"""
    logits, _ = logits_of(9, 2)
    before = as_float64(logits)
    settings = [solution.Settings(temperature=1.0, top_k=2, seed=1, repetition_penalty=2.0)] * 2
    solution.sample(logits, settings, [[1, 2], [3]])
    mx.eval(solution.choose(logits[0], settings[0], [1, 2]))
    check.unchanged(before, logits, what="the logits given to sample and choose", fact="choose-reads")
