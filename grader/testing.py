"""What a day's tests are written with: inputs, comparisons and the marks that tie a check to its task.

Runs in the grading child. Every comparison says what it looked at, so that a failure can be told in the
course's terms; `close` derives its tolerance from dtype and reduction length against a float64 oracle.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from . import loading
from .clone import find_clone
from .frames import unnoted as unnoted  # for a day's tests
from .keeping import kept as kept  # for a day's tests
from .loading import mlx_lm_module as mlx_lm_module  # for a day's tests
from .report import Failure
from .schedule_picture import schedule_text as schedule_text  # for a day's tests
from .witness import Witness, exactly, witnessed

FLOATS = (mx.float32, mx.float16, mx.bfloat16)

# Unit roundoff: half the gap between 1 and the next number.
UNIT_ROUNDOFF = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# The gap between the smallest numbers: no result can be nearer than half of it.
SMALLEST_STEP = {mx.float32: 2.0**-149, mx.float16: 2.0**-24, mx.bfloat16: 2.0**-133}

LINES, LINE = 8, 100  # of a text of several lines, in a failure

# The probability, at most, with which `check.draws` refuses draws that come from the right distribution.
FALSE_ALARM = 1e-12

# A small Qwen2 as mlx-lm's ModelArgs take it: dimensions that differ, D = 16, two KV heads; eps and theta are
# neither this course's nor mlx-lm's defaults.
SMALL_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 117,
    "rms_norm_eps": 0.02,
    "rope_theta": 300.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def dtype_name(dtype: mx.Dtype) -> str:
    """ "float32" for mx.float32."""
    return str(dtype).rpartition(".")[2]


every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)


def task(number: int) -> pytest.MarkDecorator:
    """Mark a check as belonging to the day's task `number`."""
    return pytest.mark.task(number)


def sample(
    shape: Sequence[int],
    dtype: mx.Dtype = mx.float32,
    *,
    seed: int,
    scale: float = 1.0,
    mean: float = 0.0,
) -> tuple[mx.array, np.ndarray]:
    """A normal sample as (array of `dtype`, float64 NumPy array of exactly the same, rounded values)."""
    values = np.random.default_rng(seed).normal(mean, scale, tuple(shape))
    array = mx.array(values.astype(np.float32)).astype(dtype)
    return array, as_float64(array)


def as_float64(array: mx.array) -> np.ndarray:
    """The values of a float array of any dtype, exactly."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


@unnoted
def shipped_model(name: str) -> Any:
    """The model of reference/models/`name`, as `mlx_lm.load` returns it: mlx-lm's own, weights still packed.

    Loaded anew at every call, so what a check does to it stays with that check.
    """
    folder, _ = _shipped(name)
    try:
        return loading.load_model(folder)
    except loading.NotLoadable as error:
        raise CourseFault(str(error)) from None


class ShippedTokenizer:
    """The tokenizer of reference/models/`name`, with what a solution uses of that of `mlx_lm.load`.

    Made by the library that transformers uses too, without transformers itself, which takes a second. There
    is no `detokenizer`: mlx-lm's needs transformers.
    """

    def __init__(self, name: str) -> None:
        from tokenizers import Tokenizer

        folder, config = _shipped(name)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        eos = config["eos_token_id"]
        ids = eos if isinstance(eos, list) else [eos]
        self.eos_token_id: int = ids[0]
        self.eos_token_ids: set[int] = set(ids)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _shipped(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a model that ships with the course, and its config.json."""
    clone = find_clone()
    folder = clone.reference / "models" / name
    lost = f"{clone.relative(folder)} is not there, or not whole: bring it back with git."
    files = ("config.json", "model.safetensors", "tokenizer.json")
    require(all((folder / file).is_file() for file in files), lost)
    return folder, json.loads((folder / "config.json").read_text(encoding="utf-8"))


class CheckFailed(AssertionError):
    """A learner's result is not what the check expects; carries the failure in the course's terms."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary)
        self.failure = failure


class CourseFault(AssertionError):
    """The check itself is wrong: an input lacks the property that the check relies on."""


def require(condition: bool, text: str) -> None:
    """Assert a property of the test's own input. Its failure is the course's fault, never the learner's."""
    if not condition:
        raise CourseFault(text)


def tolerance(
    dtype: mx.Dtype, *, terms: int, roundings: int = 8, magnitude: float | np.ndarray
) -> np.ndarray | float:
    """How far `check.close` lets an element be off: magnitude * u * (roundings + sqrt(terms))."""
    relative = UNIT_ROUNDOFF[dtype] * (roundings + math.sqrt(terms))
    return np.asarray(magnitude) * relative + SMALLEST_STEP[dtype]


@contextmanager
def simulated() -> Iterator[list[Any]]:
    """GPU kernels that are launched in the block run in the simulator; the list fills with what each cost
    (tinyllm.kernels.gpu.Launch: bytes read and written, barriers, and so on)."""
    from tinyllm.kernels import gpu

    with gpu.simulated() as launches:
        yield launches


class Pick:
    """How a random case is built: pick(low, high) is an integer, both ends possible."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def __call__(self, low: int, high: int) -> int:
        from hypothesis import strategies as st

        return self._draw(st.integers(low, high))

    def several(self, make: Callable[[Pick], Any], least: int, most: int) -> list[Any]:
        """`least` to `most` of what `make(pick)` builds."""
        from hypothesis import strategies as st

        item = st.composite(lambda draw: make(Pick(draw)))
        return self._draw(st.lists(item(), min_size=least, max_size=most))


def every_case(
    make: Callable[[Pick], Any],
    run: Callable[[Any], None],
    *,
    examples: int,
    shown: Callable[[Any], str] | None = None,
    shrink_seconds: float = 1.0,
) -> None:
    """Run `run(make(pick))` for random cases, always the same ones; what is raised is the smallest case's.

    The smallest of the cases that fail has the fewest picks, and the lowest numbers in them. It is looked for
    in at most `shrink_seconds` of processor time. `shown` says what a case is, for an error that the code
    under test raises; a failure of `check` says so itself.
    """
    import hypothesis
    from hypothesis import HealthCheck, Phase
    from hypothesis import strategies as st
    from hypothesis.configuration import set_hypothesis_home_dir

    smallest: list[tuple[Any, Exception]] = []
    until = math.inf

    def attempt(case: Any) -> None:
        nonlocal until
        if time.process_time() > until:
            return
        try:
            run(case)
        except Exception as error:
            check.witness.raised(error)  # where the first case that fails ends; what follows makes it smaller
            if not smallest:
                until = time.process_time() + (shrink_seconds if _is_of_the_case(error) else 0)
            smallest[:] = [(case, error)]
            raise

    set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "tinyllm-hypothesis")  # nothing in the clone
    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    cases = st.composite(lambda draw: make(Pick(draw)))
    try:
        settings(hypothesis.given(cases())(attempt))()
    except Exception:
        # What fails only now and then, or no longer in time, is an error of Hypothesis's own.
        if not smallest:
            raise
    if smallest:
        case, error = smallest[0]
        error.__notes__ = [shown(case)] if shown else []  # in place of Hypothesis's
        raise error


def _is_of_the_case(error: Exception) -> bool:
    """Whether another case may do without this error: not where code is missing."""
    if isinstance(error, NotImplementedError):
        return False
    return isinstance(error, CheckFailed) or type(error).__module__ == "builtins"


def not_run_here(reason: str) -> None:
    """End the check as one this machine cannot run. It never counts as a pass."""
    pytest.skip(reason)


def _allowed_by_close(
    got: Any,
    want: np.ndarray,
    *,
    dtype: mx.Dtype,
    terms: int,
    roundings: int = 8,
    magnitude: float | np.ndarray | None = None,
    **told: Any,
) -> tuple[np.ndarray | float, float]:
    """What `Check.close` lets the elements be off by, and the largest number of the right answer."""
    want = np.asarray(want, dtype=np.float64)
    size = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
    allowed = tolerance(
        dtype, terms=terms, roundings=roundings, magnitude=size if magnitude is None else magnitude
    )
    return np.broadcast_to(allowed, want.shape), size


class Check:
    """The comparisons. `ratios` holds, for the running check, largest error / tolerance of each one made;
    `witness` what the first one that did not hold was given."""

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.witness = Witness()

    def begin(self) -> None:
        """Forget the check before, and have this one draw the same numbers in every grading."""
        self.ratios = []
        self.witness.begin()
        mx.random.seed(0)  # an nn.Linear, for one, is born with random weights

    @witnessed(_allowed_by_close)
    def close(
        self,
        got: Any,
        want: np.ndarray,
        *,
        dtype: mx.Dtype,
        terms: int,
        what: str,
        roundings: int = 8,
        magnitude: float | np.ndarray | None = None,
        fact: str = "",
        why: str = "",
    ) -> None:
        """Compare a learner's array with a float64 oracle: type, shape, dtype, finiteness, then values.

        The tolerance of an element is `magnitude * u * (roundings + sqrt(terms))`, where u is the unit
        roundoff of `dtype`, `roundings` counts the roundings of a computation done in `dtype` throughout,
        `terms` is the length of the longest sum, and `magnitude` (default: the largest |want|) is the size
        of the numbers that were rounded. The error of a sum of n rounded terms grows like sqrt(n) when the
        roundings are independent (Higham, Accuracy and Stability of Numerical Algorithms, 4.2).
        """
        want = np.asarray(want, dtype=np.float64)
        told = {"checked": what, "fact": fact}
        array = self._array(got, want.shape, dtype, told, why)
        values = as_float64(array)

        odd = np.isfinite(values) != np.isfinite(want)
        odd |= ~np.isfinite(want) & ~((values == want) | (np.isnan(values) & np.isnan(want)))
        if odd.any():
            self._fail(
                f"{_count(odd)} not finite where the right answer is, or the other way round."
                + _sentence(why),
                where=_where(odd, values, want),
                got=_kinds(values),
                **told,
            )
        finite = np.isfinite(want)
        if magnitude is None:
            magnitude = np.abs(want[finite]).max(initial=0.0)
        allowed = tolerance(dtype, terms=terms, roundings=roundings, magnitude=magnitude)
        allowed = np.broadcast_to(allowed, want.shape)
        error = np.where(finite, np.abs(np.where(finite, values, 0) - np.where(finite, want, 0)), 0.0)
        ratio = error / allowed
        worst = float(ratio.max(initial=0.0))
        self.ratios.append(worst)
        bad = ~(ratio <= 1.0)
        if bad.any():
            at = np.unravel_index(int(ratio.argmax()), ratio.shape)
            self._fail(
                f"{_count(bad)} too far from the right answer." + _sentence(why),
                where=_where(bad, values, want),
                error=f"largest error {error[at]:.3g} at {_index(at)}; "
                f"tolerance {allowed[at]:.2g} ({dtype_name(dtype)}, sums of {terms})",
                ratio=worst,
                **told,
            )

    @witnessed(exactly)
    def exact(self, got: Any, want: Any, *, what: str, fact: str = "", why: str = "") -> None:
        """Compare with an expectation that has one right answer: a Python value, or an array (type, shape,
        dtype and every element; NaN never equals)."""
        told = {"checked": what, "fact": fact}
        self.ratios.append(0.0)
        if not isinstance(want, mx.array):
            if type(got) is not type(want) or got != want:
                self._fail(
                    "The result is not the expected one." + _sentence(why),
                    expected=_short(want),
                    got=_short(got),
                    **told,
                )
            return
        array = self._array(got, tuple(want.shape), want.dtype, told, why)
        values, wanted = _exact_values(array), _exact_values(want)
        bad = ~(values == wanted)
        if bad.any():
            self._fail(
                f"{_count(bad)} not what they must be exactly." + _sentence(why),
                where=_where(bad, values, wanted),
                **told,
            )

    @witnessed(exactly)
    def ids(self, got: Any, want: np.ndarray, *, what: str, fact: str = "", why: str = "") -> None:
        """Compare token ids with the only right ones: an mx.array of integers, its shape, every id."""
        want = np.asarray(want)
        told = {"checked": what, "fact": fact}
        values = np.array(self._array(got, want.shape, None, told, why))
        self.ratios.append(0.0)
        bad = values != want
        if bad.any():
            self._fail(
                f"{_count(bad)} not the right token id." + _sentence(why),
                where=_where(bad, values, want),
                **told,
            )

    @witnessed(exactly)
    def draws(
        self,
        got: Any,
        probabilities: np.ndarray,
        *,
        count: int,
        what: str,
        fact: str = "",
        why: str = "",
        slack: float = 0.0,
    ) -> None:
        """Compare `count` independent draws of token ids, (count, ...), with the distribution they must
        come from, (..., V) in float64.

        An id of probability 0 may not come out at all. An id that must have come out by now, because
        missing it `count` times is nearly impossible, may not be absent. Every other id's share of the
        draws may differ from its probability by `slack`, what a computation in the dtype may move it by,
        plus sqrt(ln(4 * cells / FALSE_ALARM) / (2 * count)): by Hoeffding's inequality, over all cells (the
        elements of `probabilities`), right draws are refused with a probability of at most FALSE_ALARM.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        told = {"checked": f"{what}, {count} draws", "fact": fact}
        ids = np.array(self._array(got, (count, *p.shape[:-1]), None, told, why)).astype(np.int64)
        vocab = p.shape[-1]
        outside = (ids < 0) | (ids >= vocab)
        if outside.any():
            self._fail(
                f"{_count(outside)} no token id: ids go from 0 to {vocab - 1}." + _sentence(why),
                where=f"first: {ids[outside][0]}",
                **told,
            )
        counts = (ids[..., None] == np.arange(vocab)).sum(axis=0)  # (..., V)

        impossible = (p == 0) & (counts > 0)
        if impossible.any():
            at = _first(impossible)
            self._fail(
                "A token came out that may never come out." + _sentence(why),
                expected=f"ids of {_id_set(p[at[:-1]] > 0)}",
                got=f"id {at[-1]}, {counts[at]} times{_row(at)}",
                **told,
            )
        # ln((1 - p) ** count): the chance that an id of probability p - slack is never drawn.
        with np.errstate(divide="ignore"):
            chance = count * np.log1p(-np.clip(p - slack, 0, 1))
        absent = (counts == 0) & (chance < math.log(FALSE_ALARM / 2 / p.size))
        if absent.any():
            at = _first(absent)
            self._fail(
                "A token never came out that must come out." + _sentence(why),
                expected=f"id {at[-1]} about {p[at] * count:.0f} times{_row(at)}",
                got=f"only ids of {_id_set(counts[at[:-1]] > 0)}",
                **told,
            )
        allowed = slack + math.sqrt(math.log(4 * p.size / FALSE_ALARM) / (2 * count))
        error = np.abs(counts / count - p)
        worst = float(error.max()) / allowed
        self.ratios.append(worst)
        if not worst <= 1:
            at = np.unravel_index(int(error.argmax()), error.shape)
            self._fail(
                "The tokens do not come out as often as they should." + _sentence(why),
                where=f"id {int(at[-1])}{_row(at)}: expected a share of {p[at]:.3f}, "
                f"got {counts[at] / count:.3f}",
                error=f"difference {error[at]:.3g}; tolerance {allowed:.2g} for {count} draws",
                ratio=worst,
                **told,
            )

    @witnessed(exactly)
    def raises(
        self, error: type[BaseException], call: Callable[[], Any], *, what: str, why: str = ""
    ) -> None:
        """The learner's code must refuse: `call()` has to raise `error`."""
        self.ratios.append(0.0)
        try:
            result = call()
        except error:
            return
        self._fail(
            f"This must raise {error.__name__}, and did not." + _sentence(why),
            checked=what,
            expected=error.__name__,
            got=f"returned {_short(result)}",
        )

    @witnessed(exactly)
    def unchanged(self, before: np.ndarray, array: mx.array, *, what: str, fact: str = "") -> None:
        """The learner's code must leave its caller's array as it was."""
        self.ratios.append(0.0)
        if not np.array_equal(before, as_float64(array)):
            summary = "The caller's array was changed; a function here only reads its inputs."
            self._fail(summary, checked=what, fact=fact)

    def _array(
        self, got: Any, shape: tuple[int, ...], dtype: mx.Dtype | None, told: dict[str, str], why: str
    ) -> mx.array:
        """`got`, evaluated, once its type, shape and dtype are right; a dtype of None is any integer one."""
        expected = f"mx.array {_shape(shape)} {dtype_name(dtype) if dtype else 'of integers'}"
        if got is None:
            self._fail("The result is None: is there a `return`?", expected=expected, got="None", **told)
        if not isinstance(got, mx.array):
            self._fail("The result is not an mx.array.", expected=expected, got=_short(got), **told)
        if tuple(got.shape) != tuple(shape):
            hint = ""
            if len(shape) > 1 and sorted(got.shape) == sorted(shape):
                hint = " The sizes are right and their order is not: look at your transposes."
            elif got.size == math.prod(shape):
                hint = " The number of elements is right: look at your reshapes."
            self._fail(
                "The shape is wrong." + hint + _sentence(why),
                expected=expected,
                got=f"mx.array {_shape(got.shape)} {dtype_name(got.dtype)}",
                **told,
            )
        if got.dtype != dtype if dtype else not mx.issubdtype(got.dtype, mx.integer):
            self._fail(
                "The dtype is wrong." + _sentence(why),
                expected=expected,
                got=f"mx.array {_shape(got.shape)} {dtype_name(got.dtype)}",
                **told,
            )
        mx.eval(got)
        return got

    def _fail(self, summary: str, **parts: Any) -> None:
        raise CheckFailed(Failure(summary=summary, **parts))


check = Check()


def _exact_values(array: mx.array) -> np.ndarray:
    return as_float64(array) if mx.issubdtype(array.dtype, mx.floating) else np.array(array)


def _sentence(why: str) -> str:
    return f" {why}" if why else ""


def _shape(shape: Sequence[int]) -> str:
    return str(tuple(int(n) for n in shape))


def _index(at: Sequence[Any]) -> str:
    return "[" + ", ".join(str(int(i)) for i in at) + "]"


def _count(bad: np.ndarray) -> str:
    n = int(bad.sum())
    if n == bad.size:
        return "Every element is" if n > 1 else "The one element is"
    return f"{n} of {bad.size} elements {'are' if n > 1 else 'is'}"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)


def _where(bad: np.ndarray, values: np.ndarray, want: np.ndarray) -> str:
    """The first wrong element: "first at [0, 2]: expected 0.73, got 0.5"."""
    at = np.unravel_index(int(bad.argmax()), bad.shape)
    return f"first at {_index(at)}: expected {_number(want[at])}, got {_number(values[at])}"


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def _row(at: Sequence[Any]) -> str:
    """ " in row [0, 2]" of an index whose last number is a token id; nothing when there is one row."""
    return f" in row {_index(at[:-1])}" if len(at) > 1 else ""


def _id_set(among: np.ndarray) -> str:
    """The ids marked in a row: "{0, 3, 5}"."""
    return "{" + ", ".join(str(int(i)) for i in np.flatnonzero(among)) + "}"


def _kinds(values: np.ndarray) -> str:
    counts = {
        "nan": int(np.isnan(values).sum()),
        "inf": int(np.isposinf(values).sum()),
        "-inf": int(np.isneginf(values).sum()),
    }
    said = [f"{n} x {kind}" for kind, n in counts.items() if n]
    return f"{', '.join(said) or 'no nan or inf'} in {values.size} elements"


def _short(value: Any) -> str:
    if isinstance(value, mx.array):
        return f"mx.array {_shape(value.shape)} {dtype_name(value.dtype)}"
    if isinstance(value, np.ndarray):
        return f"numpy array {_shape(value.shape)} {value.dtype}"
    if isinstance(value, str) and "\n" in value:
        return _ends_of(value)
    text = repr(value)
    kind = type(value).__name__
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({kind})" if not isinstance(value, (str, type(None))) else text


def _ends_of(text: str) -> str:
    """Text of several lines as it is, if they are not too many and not too long."""
    lines = [line if len(line) <= LINE else line[: LINE - 3] + "..." for line in text.split("\n")]
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."])
