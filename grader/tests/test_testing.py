"""The comparisons that tests are written with: what they accept, what they refuse and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tokenizers
from mlx.utils import tree_flatten

from tinyllm.grader.report import Failure
from tinyllm.grader.testing import (
    FALSE_ALARM,
    FLOATS,
    UNIT_ROUNDOFF,
    Check,
    CheckFailed,
    CourseFault,
    ShippedTokenizer,
    as_float64,
    every_case,
    mlx_lm_module,
    not_run_here,
    require,
    sample,
    shipped_model,
    tolerance,
)

WHAT = "f(x)"


def refusal(call) -> Failure:
    with pytest.raises(CheckFailed) as caught:
        call()
    return caught.value.failure


def close(got, want, dtype=mx.float32, **options):
    check = Check()
    check.close(got, np.asarray(want), dtype=dtype, terms=4, what=WHAT, **options)
    return check.ratios[-1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sample_is_known_exactly(dtype) -> None:
    array, values = sample((3, 5), dtype, seed=1, scale=2.0, mean=1.0)
    assert array.dtype == dtype
    assert np.array_equal(as_float64(array), values)
    again, _ = sample((3, 5), dtype, seed=1, scale=2.0, mean=1.0)
    assert mx.array_equal(array, again)
    assert abs(values.mean() - 1.0) < 2.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_rounding_is_accepted_and_ten_tolerances_are_not(dtype) -> None:
    want = np.array([0.1, 0.7, 1.3])
    got = mx.array(want.astype(np.float32)).astype(dtype)
    assert close(got, want, dtype) < 0.2
    tolerance = 1.3 * UNIT_ROUNDOFF[dtype] * (8 + 2)
    off = mx.array((want + 10 * tolerance).astype(np.float32)).astype(dtype)
    found = refusal(lambda: close(off, want, dtype))
    assert found.ratio is not None
    assert 8 < found.ratio < 12


def test_the_tolerance_may_be_given_an_elementwise_size() -> None:
    want = np.array([1.0, 1000.0])
    got = mx.array([1.0 + 1e-4, 1000.0])
    assert close(got, want) < 1  # the largest |want| sets the size
    assert refusal(lambda: close(got, want, magnitude=np.abs(want))).where.startswith("first at [0]")


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        ([1.0, 2.0], "not an mx.array"),
        (np.ones(2), "not an mx.array"),
        (mx.ones((2, 1)), "look at your reshapes"),
        (mx.ones(3), "The shape is wrong."),
        (mx.ones(2, dtype=mx.float16), "dtype is wrong"),
        (mx.array([1.0, float("nan")]), "not finite"),
        (mx.array([1.0, float("inf")]), "not finite"),
        (mx.array([1.0, 3.0]), "too far"),
        (mx.zeros(2), "Every element is too far"),
    ],
)
def test_each_kind_of_wrong_has_its_words(got, words: str) -> None:
    found = refusal(lambda: close(got, [1.0, 2.0], fact="a-fact", why="Because."))
    assert words in found.summary
    assert (found.checked, found.fact) == (WHAT, "a-fact")
    if "wrong." not in found.summary and got is not None and "mx.array" not in found.summary:
        assert found.summary.endswith("Because.")


def test_a_transposed_shape_is_told_as_that() -> None:
    found = refusal(lambda: close(mx.ones((3, 2)), np.ones((2, 3))))
    assert "look at your transposes" in found.summary
    assert (found.expected, found.got) == ("mx.array (2, 3) float32", "mx.array (3, 2) float32")


def test_infinities_must_be_where_the_oracle_has_them() -> None:
    want = [0.0, -np.inf]
    assert close(mx.array([0.0, float("-inf")]), want) == 0
    assert "1 x inf" in refusal(lambda: close(mx.array([0.0, float("inf")]), want)).got
    assert refusal(lambda: close(mx.array([0.0, -1e30]), want)).where == (
        "first at [1]: expected -inf, got -1e+30"
    )


def test_an_all_zero_answer_needs_zeros() -> None:
    assert close(mx.zeros(2), [0.0, 0.0]) == 0
    assert refusal(lambda: close(mx.array([0.0, 1e-20]), [0.0, 0.0])).ratio > 1e6


def test_exact_compares_kind_and_value() -> None:
    check = Check()
    check.exact("abc", "abc", what=WHAT)
    check.exact(mx.array([1, 2]), mx.array([1, 2]), what=WHAT)
    check.exact(mx.array([0.0, float("-inf")]), mx.array([0.0, float("-inf")]), what=WHAT)
    assert check.ratios == [0.0] * 3
    found = refusal(lambda: check.exact(True, 1, what=WHAT))
    assert (found.expected, found.got, found.ratio) == ("1 (int)", "True (bool)", None)
    assert refusal(lambda: check.exact(mx.array([1, 3]), mx.array([1, 2]), what=WHAT)).where == (
        "first at [1]: expected 2, got 3"
    )
    nan = mx.array([float("nan")])
    assert "exactly" in refusal(lambda: check.exact(nan, nan, what=WHAT)).summary


def test_raises_and_unchanged() -> None:
    check = Check()
    check.raises(ValueError, lambda: int("x"), what=WHAT)
    found = refusal(lambda: check.raises(ValueError, lambda: mx.ones(2), what=WHAT, why="Too long."))
    assert found.got == "returned mx.array (2,) float32"
    x = mx.ones(2)
    check.unchanged(as_float64(x), x, what=WHAT)
    assert "caller's array" in refusal(lambda: check.unchanged(np.zeros(2), x, what=WHAT)).summary
    with pytest.raises(ZeroDivisionError):
        check.raises(ValueError, lambda: 1 // 0, what=WHAT)


def test_begin_forgets_what_was_compared() -> None:
    check = Check()
    check.exact(1, 1, what=WHAT)
    check.begin()
    assert check.ratios == []


def test_the_course_blames_itself_for_a_bad_input() -> None:
    require(True, "fine")
    with pytest.raises(CourseFault, match="no small values"):
        require(False, "no small values")
    with pytest.raises(pytest.skip.Exception, match="no GPU"):
        not_run_here("no GPU")


def test_long_values_are_shortened() -> None:
    found = refusal(lambda: Check().exact(list(range(100)), 1, what=WHAT))
    assert len(found.got) < 80
    assert found.got.endswith("... (list)")
    assert refusal(lambda: Check().exact(np.ones((2, 3)), 1, what=WHAT)).got == "numpy array (2, 3) float64"


def test_a_module_of_mlx_lm_comes_without_transformers() -> None:
    code = (
        "import sys\n"
        "from tinyllm.grader.testing import mlx_lm_module\n"
        "qwen2 = mlx_lm_module('models.qwen2')\n"
        "assert mlx_lm_module('models.qwen2') is qwen2\n"
        "import mlx_lm.models.qwen2\n"
        "assert mlx_lm.models.qwen2.Model is qwen2.Model\n"
        "print('transformers' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def ids(got, want) -> None:
    Check().ids(got, np.asarray(want), what=WHAT)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64, mx.uint8])
def test_token_ids_may_have_any_integer_dtype(dtype) -> None:
    check = Check()
    check.ids(mx.array([[1, 2], [0, 7]], dtype=dtype), np.array([[1, 2], [0, 7]]), what=WHAT)
    assert check.ratios == [0.0]


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        (3, "not an mx.array"),
        (mx.array([1.0, 2.0]), "dtype is wrong"),
        (mx.array([True, False]), "dtype is wrong"),
        (mx.array([[1, 2]]), "look at your reshapes"),
        (mx.array([1, 3]), "1 of 2 elements is not the right token id"),
    ],
)
def test_wrong_token_ids_are_refused(got, words: str) -> None:
    assert words in refusal(lambda: ids(got, [1, 2])).summary


def test_what_token_ids_must_be_is_said() -> None:
    found = refusal(lambda: ids(mx.array([1.0, 2.0]), [1, 2]))
    assert (found.expected, found.got) == ("mx.array (2,) of integers", "mx.array (2,) float32")
    assert refusal(lambda: ids(mx.array([1, 3]), [1, 2])).where == "first at [1]: expected 2, got 3"


ROWS = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.1, 0.8]])
COUNT = 4000


def drawn(rows: np.ndarray, seed: int, count: int = COUNT) -> mx.array:
    """`count` draws from each row, (count, rows)."""
    rng = np.random.default_rng(seed)
    return mx.array(np.stack([rng.choice(rows.shape[-1], count, p=row) for row in rows], axis=-1))


def draws(got, rows: np.ndarray = ROWS, count: int = COUNT, **options) -> float:
    check = Check()
    check.draws(got, rows, count=count, what=WHAT, **options)
    return check.ratios[-1]


def test_right_draws_are_accepted() -> None:
    assert max(draws(drawn(ROWS, seed)) for seed in range(50)) < 0.6
    assert draws(mx.array([2] * 10), np.array([0.0, 0.0, 1.0]), count=10) == 0


def test_the_tolerance_of_draws_is_hoeffding_s() -> None:
    """What it promises, over cells and both sides, is FALSE_ALARM / 2; the other half is for absent ids."""
    off = np.array([[0.3, 0.5, 0.2, 0.0], [0.1, 0.0, 0.1, 0.8]])
    found = refusal(lambda: draws(drawn(off, 1)))
    assert found.ratio is not None
    tolerance = 0.2 / found.ratio
    bound = 2 * ROWS.size * np.exp(-2 * COUNT * tolerance**2)
    assert 0.3 < np.log(bound) / np.log(FALSE_ALARM / 2) < 1.1
    assert found.checked == f"{WHAT}, {COUNT} draws"
    assert found.where.startswith("id 0 in row [0]: expected a share of 0.500, got 0.")
    assert draws(drawn(off, 1), slack=0.2) < 1


def test_an_impossible_id_is_refused_at_its_first_coming() -> None:
    got = np.array(drawn(ROWS, 2))
    got[17, 1] = 1
    found = refusal(lambda: draws(mx.array(got)))
    assert found.ratio is None
    assert "may never come out" in found.summary
    assert (found.expected, found.got) == ("ids of {0, 2, 3}", "id 1, 1 times in row [1]")


def test_an_id_that_must_come_out_is_missed() -> None:
    without = np.array([[0.5, 0.3, 0.2, 0.0], [0.2, 0.0, 0.0, 0.8]])
    found = refusal(lambda: draws(drawn(without, 3)))
    assert found.ratio is None
    assert "never came out" in found.summary
    assert found.expected == "id 2 about 400 times in row [1]"
    assert found.got == "only ids of {0, 3}"
    # Few draws prove nothing: an id of probability 0.1 is easily missed ten times.
    assert draws(mx.array([[0, 3]] * 10), without * 0.9 + ROWS * 0.1, count=10) < 1


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (None, "is there a `return`"),
        (mx.zeros((COUNT, 2)), "dtype is wrong"),
        (mx.zeros((COUNT,), dtype=mx.int32), "shape is wrong"),
        (mx.full((COUNT, 2), 4), "no token id: ids go from 0 to 3"),
        (mx.full((COUNT, 2), -1), "no token id"),
    ],
)
def test_draws_of_the_wrong_kind_are_refused(got, words: str) -> None:
    assert words in refusal(lambda: draws(got)).summary


# ---- the models that ship ----


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clone whose reference/models/ has one small model, its weights packed but for those of q_proj."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "course.toml").touch()
    monkeypatch.setenv("TINYLLM_ROOT", str(tmp_path))
    folder = tmp_path / "reference" / "models" / "small"
    folder.mkdir(parents=True)
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": 300,
        "tie_word_embeddings": True,
        "eos_token_id": [257, 256],
        "quantization": {"group_size": 32, "bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    qwen2 = mlx_lm_module("models.qwen2")
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    packed = {"group_size": 32, "bits": 4}
    nn.quantize(
        model,
        class_predicate=lambda path, layer: (
            not path.endswith("q_proj") and hasattr(layer, "to_quantized") and packed
        ),
    )
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=256, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|turn|>"])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    yield folder
    for name in [m for m in sys.modules if m.partition(".")[0] == "mlx_lm"]:
        del sys.modules[name]  # its __init__ has not run: other tests may want the whole of it


def test_a_shipped_model_is_mlx_lm_s_with_the_file_s_weights(shipped: Path) -> None:
    model = shipped_model("small")
    assert type(model).__module__ == "mlx_lm.models.qwen2"
    weights = mx.load(str(shipped / "model.safetensors"))
    have = dict(tree_flatten(model.parameters()))
    assert have.keys() == weights.keys()
    assert all(mx.array_equal(have[name], weights[name]) for name in weights)
    layer = model.layers[1].self_attn
    assert (layer.k_proj.group_size, layer.k_proj.bits, hasattr(layer.q_proj, "scales")) == (32, 4, False)
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, 300)
    assert shipped_model("small") is not model


def test_a_shipped_tokenizer_knows_bytes_and_special_tokens(shipped: Path) -> None:
    tokenizer = ShippedTokenizer("small")
    ids = tokenizer.encode("é<tool><|turn|>")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "é<tool><|turn|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "é<tool>"
    assert tokenizer.decode(ids[0]) == "\ufffd"
    assert (tokenizer.eos_token_id, tokenizer.eos_token_ids, len(tokenizer)) == (257, {256, 257}, 259)


def test_a_shipped_model_that_is_missing_is_the_course_s_fault(shipped: Path) -> None:
    with pytest.raises(CourseFault, match=r"reference/models/large .* bring it back"):
        shipped_model("large")


def test_the_tolerance_is_the_one_that_close_uses() -> None:
    allowed = tolerance(mx.bfloat16, terms=9, roundings=5, magnitude=2.0)
    assert allowed == pytest.approx(2.0 * 2.0**-8 * 8)
    check = Check()
    options = {"dtype": mx.bfloat16, "terms": 9, "roundings": 5, "magnitude": 2.0, "what": WHAT}
    check.close(mx.array([1.0], mx.bfloat16), np.array([1.0 - allowed / 2]), **options)
    assert check.ratios == [pytest.approx(0.5)]


def numbers(pick) -> list[int]:
    return pick.several(lambda pick: pick(0, 30), 0, 8)


def test_every_case_runs_the_same_cases_each_time_and_lets_right_code_pass() -> None:
    runs = []
    for _ in range(2):
        seen: list[list[int]] = []
        every_case(numbers, seen.append, examples=25)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 25
    assert len({tuple(case) for case in runs[0]}) > 15
    assert all(0 <= n <= 30 for case in runs[0] for n in case)


def test_every_case_raises_the_failure_of_the_smallest_case() -> None:
    def run(case: list[int]) -> None:
        Check().exact(sum(n > 7 for n in case) < 2, True, what=f"f({case})")

    failure = refusal(lambda: every_case(numbers, run, examples=25))
    assert failure.checked == "f([8, 8])"


def test_every_case_notes_which_case_an_error_came_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(case: list[int]) -> None:
        [0, 1, 2][len(case)]

    with pytest.raises(IndexError) as caught:
        every_case(numbers, run, examples=25, shown=lambda case: f"with {len(case)} numbers: {case}")
    assert caught.value.__notes__ == ["with 3 numbers: [0, 0, 0]"]
    assert not list(tmp_path.iterdir())  # Hypothesis keeps nothing in a learner's clone


def test_every_case_tells_what_fails_only_once() -> None:
    runs = []

    def run(case: list[int]) -> None:
        runs.append(case)
        Check().exact(len(runs), 0, what="f(x)") if len(runs) == 3 else None

    assert refusal(lambda: every_case(numbers, run, examples=25)).got == "3 (int)"


def test_every_case_does_not_look_for_a_smaller_case_of_code_that_is_not_written() -> None:
    runs = []

    def run(case: list[int]) -> None:
        runs.append(case)
        raise NotImplementedError("day 9.9, task 1: f")

    with pytest.raises(NotImplementedError, match="task 1"):
        every_case(numbers, run, examples=25)
    assert len(runs) == 1
