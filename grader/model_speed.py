"""A whole model's speed, as an engine of the course runs it: what `tinyllm-grade bench model` measures.

The tree's model, the reference's and mlx-lm's read the same drawn ids with the same weights, in turns:
prompts of two lengths, then single tokens after a prompt. mlx-lm is run as the engine is: with a cache where
the engine has one, with all tokens so far where it has none. Runs in the measuring child.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten

from tinyllm.kernels.blas import BlasState

from . import loading, machine
from .catalog import Engine
from .errors import EnvironmentFault, UsageError
from .figures import Limits, Race, size
from .measuring import AGREE, REFERENCE, YOURS, Bench, Contestant, Emit, Missing, Unfit, kind_of
from .roofline import Point, Roofline

MLX_LM, PLAIN = "mlx-lm", "mlx-lm, dense weights"  # dense: unpacked once, as week 1's model holds them
TURN_SECONDS = 4.0  # a contestant that takes longer for a turn of decoding gets fewer tokens
LONGEST_PREFILL = 60.0  # seconds; one that would take longer is not timed
LONGEST_SETUP = 10.0  # seconds to fill a cache before each turn; one that takes longer begins with one token
FEW_TOKENS = 32
CACHES_HOLD = 100_000_000  # bytes; with fewer weights than that, memory is not what limits decoding
DENSE_MARGIN = 1.3  # of the unpacked weights, that a dense model takes while it is made

Ids = mx.array  # (1, L)


@dataclass(frozen=True)
class Traffic:
    """What one pass must read from memory and compute, whoever runs it, by the checkpoint's own tensors."""

    weight_bytes: int  # packed, with scales: all linears and the head, and one row of the embedding
    weight_numbers: int  # of the linears and the head: two operations each and token
    head_numbers: int  # the head's part of them
    cache_bytes: int  # keys and values of one token, in all layers
    attention_width: int  # H_q x D in all layers: four operations each, token and key

    def decode_bytes(self, keys: float) -> float:
        """Bytes for a token that attends to so many."""
        return self.weight_bytes + keys * self.cache_bytes

    def decode_operations(self, keys: float) -> float:
        return 2 * self.weight_numbers + 4 * self.attention_width * keys

    def prefill_bytes(self, length: int) -> float:
        return self.weight_bytes + length * self.cache_bytes

    def prefill_operations(self, length: int, logits: int) -> float:
        """Operations to read a text of `length` tokens and compute the logits of so many of them."""
        without_head = 2 * (length - logits) * self.head_numbers
        return length * self.decode_operations((length + 1) / 2) - without_head


class Runner:
    """One model, run as the engine runs it. `name` is what the tables call it."""

    def __init__(self, name: str, model: Callable[..., Any], make_cache: Callable[[], Any] | None) -> None:
        self.name = name
        self.model = model
        self.make_cache = make_cache  # None: no cache, every call has all tokens so far
        self.token_seconds = 0.0  # that one token took, when it was tried
        self.read_seconds = 0.0  # that each of a few took

    def read(self, ids: Ids) -> tuple[mx.array, Any]:
        """Read the first tokens as a reply begins: the logits of the last one, and what `step` goes on from.

        With a cache, what it holds of all but the last token is computed and their logits never are (day 2.1,
        and mlx-lm's own prefill).
        """
        if self.make_cache is None:
            logits = self._logits(ids, 0, None)
            mx.eval(logits)
            return logits[:, -1], None
        cache, last = self.make_cache(), ids.shape[1] - 1
        if last:
            self._logits(ids[:, :last], 0, cache)
            mx.eval([layer.state for layer in cache])
        return self._logits(ids[:, last:], last, cache)[:, -1], cache

    def step(self, ids: Ids, offset: int, cache: Any) -> mx.array:
        """The logits after one more token. ids: all tokens so far, that one included."""
        return self._logits(ids if self.make_cache is None else ids[:, offset:], offset, cache)

    def _logits(self, ids: Ids, offset: int, cache: Any) -> mx.array:
        logits = self.model(ids) if self.make_cache is None else self._call(ids, offset, cache)
        if not isinstance(logits, mx.array):
            raise Unfit(self.name, f"gave {kind_of(logits)}, not logits.")
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise Unfit(self.name, f"gave logits {logits.shape} for ids {ids.shape}.")
        return logits

    def _call(self, ids: Ids, offset: int, cache: Any) -> mx.array:
        return self.model(ids, offset, cache)


class MlxLmRunner(Runner):
    """mlx-lm's model, whose caches know their own offset."""

    def _call(self, ids: Ids, offset: int, cache: Any) -> mx.array:
        return self.model(ids, cache=cache)


class Speed:
    """One measurement. `options` has the keys of benching.ModelOptions."""

    def __init__(
        self, bench: Bench, engine: Engine, blas: BlasState, options: Mapping[str, Any], emit: Emit
    ) -> None:
        self.bench = bench
        self.engine = engine
        self.blas = blas
        self.options = options
        self.emit = emit
        self.points: list[Point] = []

    def measure(self) -> None:
        """Make the models, then prefill, decode and the limits, told as they are found."""
        bench, options = self.bench, self.options
        bench.stage("loading the weights")
        folder = options["folder"] or bench.checkpoint_folder(options["shape"], options["dtype"])
        try:
            self.weights = loading.load_model(Path(folder))
        except loading.NotLoadable as error:
            raise EnvironmentFault(str(error)) from None
        self.traffic = traffic(self.weights)
        self.vocabulary = self.weights.args.vocab_size
        self.runners = self._runners(Path(folder))
        self._try()
        bench.note(self._about())
        for length in options["prefill"]:
            self._prefill(length)
        self._decode(options["prompt"], options["tokens"])
        if options["plot"]:
            bench.stage("measuring the fastest matrix product")
            peak = machine.product_peak(self.blas)
            band = bench.bandwidth
            picture = Roofline(
                self._name(), band.per_second, band.how, peak.per_second, peak.how, tuple(self.points)
            )
            self.emit("roofline", asdict(picture))

    def _name(self) -> str:
        return self.options["shape"] or Path(self.options["folder"]).name

    # ---- the contestants

    def _runners(self, folder: Path) -> list[Runner]:
        bench, runners = self.bench, []
        trees = [(REFERENCE, bench.reference_module)]
        if not bench.is_reference:
            trees.insert(0, (YOURS, bench.module))
        for name, module_of in trees:
            bench.stage(f"building the model: {name}")
            symbol = self.engine.model
            build = getattr(module_of(symbol.module), symbol.name, None)
            if build is None:
                raise Missing(bench.mine if name == YOURS else bench.theirs, symbol.module, symbol.name)
            model = build(self.weights)
            runners.append(Runner(name, model, getattr(model, "create_kv_cache", None)))
        self.cached = runners[-1].make_cache is not None
        if self.options["against"] == "mlx-lm":
            self._add_mlx_lm(runners, MLX_LM, self.weights)
            if self._packed() and self._fits():
                self._add_mlx_lm(runners, PLAIN, loading.load_model(folder, dequantized=True))
            elif self._packed():
                bench.note(f"{PLAIN}: left out, {size(self._dense_bytes())} of memory are not free.")
        return runners

    def _add_mlx_lm(self, runners: list[Runner], name: str, model: Any) -> None:
        make_prompt_cache = self.bench.mlx_lm("models.cache").make_prompt_cache
        runners.append(MlxLmRunner(name, model, (lambda: make_prompt_cache(model)) if self.cached else None))

    def _packed(self) -> bool:
        return any(name.endswith(".scales") for name, _ in tree_flatten(self.weights.parameters()))

    def _dense_bytes(self) -> float:
        return DENSE_MARGIN * 4 * self.traffic.weight_numbers

    def _fits(self) -> bool:
        return psutil.virtual_memory().available > self._dense_bytes()

    def _try(self) -> None:
        """Have each read its weights once, and see how long it takes for one token and for a few."""
        for runner in self.runners:
            self.bench.stage(f"first tokens: {runner.name}")
            logits, seconds = self._timed(runner, 1)
            if seconds < LONGEST_PREFILL:  # the first time may be spent on the weights
                seconds = min(self._timed(runner, 1)[1] for _ in range(3 if seconds < TURN_SECONDS else 1))
            runner.token_seconds = runner.read_seconds = seconds
            few = min(FEW_TOKENS, self._longest())
            if few * seconds < LONGEST_PREFILL:  # many rows may cost far less than one by one
                runner.read_seconds = self._timed(runner, few)[1] / few
            self.dtype = str(logits.dtype).rpartition(".")[2]

    def _timed(self, runner: Runner, length: int) -> tuple[mx.array, float]:
        ids = self._ids(length, -length)
        began = time.perf_counter()
        logits, _ = runner.read(ids)
        mx.eval(logits)
        return logits, time.perf_counter() - began

    def _ids(self, length: int, turn: int) -> Ids:
        """Ids that no other turn has."""
        return mx.random.randint(0, self.vocabulary, (1, length), key=mx.random.key(1000 + turn))

    def _about(self) -> str:
        products = "the GPU" if machine.on_gpu() else str(self.blas)
        return (
            f"{self._name()}, {self.dtype}, weights of {size(self.traffic.weight_bytes)} as stored; dense "
            f"products by {products}."
        )

    # ---- the races

    def _prefill(self, length: int) -> None:
        if length > self._longest():
            self.bench.note(f"Prefill of {length} tokens: left out, the model takes {self._longest()}.")
            return
        able = [r for r in self.runners if self._worth_it(r, f"prefill of {length}", length * r.read_seconds)]
        if not able:
            return
        race = self.bench.run_race(
            f"prefill of {length} tokens",
            [Contestant(r.name, _reading(r)) for r in able],
            "tokens/s",
            length,
            self.options["rounds"],
            lambda turn: (self._ids(length, turn),),
            AGREE,
            self._bars(able),
        )
        for runner, lane in zip(able, race.lanes, strict=True):
            if lane.figures:
                runner.read_seconds = 1 / lane.median  # a better guess than a few tokens gave
        operations = self.traffic.prefill_operations(length, logits=1 if self.cached else length)
        moved = self.traffic.prefill_bytes(length)
        self._add_points(f"prefill {length}", race, operations / length, moved / length)

    def _decode(self, prompt: int, tokens: int) -> None:
        prompt = min(prompt, self._longest() - tokens)
        if prompt < 1:
            raise UsageError(f"--tokens {tokens}: this model takes at most {self._longest()}.")
        bounded = self.traffic.weight_bytes > CACHES_HOLD
        reader = machine.MemoryReader() if bounded else None
        contestants, starts = [], set()
        bandwidths: dict[str, list[float]] = {}  # of the memory, measured before each turn of a contestant
        for runner in self.runners:
            reading = prompt * runner.read_seconds
            token = runner.token_seconds if runner.make_cache else reading
            if not self._worth_it(runner, "decode", token):
                continue
            steps = max(1, min(tokens, int(TURN_SECONDS / token)))
            start = 1 if runner.make_cache and reading > LONGEST_SETUP else prompt
            starts.add(start)
            less = [f"{steps} token{'s' * (steps != 1)}"] if steps < tokens else []
            less += ["after 1"] if start < prompt else []
            measured = bandwidths.setdefault(runner.name, [])
            contestants.append(_decoding(runner, start, steps, " ".join(less), _noting(reader, measured)))
        if not contestants:
            return
        how = "" if self.cached else ", each from all tokens so far"
        race = self.bench.run_race(
            f"decode, {tokens} tokens after {prompt}{how}",
            contestants,
            "tokens/s",
            tokens,
            self.options["rounds"],
            lambda turn: (self._ids(prompt + tokens, turn),),
            AGREE if len(starts) == 1 else None,
            self._bars([r for r in self.runners if r.name in {c.name for c in contestants}]),
        )
        self._limits(race, prompt + tokens / 2, reader, bandwidths)

    def _limits(
        self,
        race: Race,
        keys: float,
        reader: machine.MemoryReader | None,
        bandwidths: Mapping[str, Sequence[float]],
    ) -> None:
        """What the machine's memory allows, and the share of it that each reaches, turn by turn."""
        needed = self.traffic.decode_bytes(keys)
        self._add_points("decode", race, self.traffic.decode_operations(keys), needed)
        weights, cached = self.traffic.weight_bytes, keys * self.traffic.cache_bytes
        if reader is None:
            self.emit("limits", asdict(Limits(weights, cached, 0.0)))
            return
        shares = []
        for lane in race.lanes:
            if lane.figures:
                beside = bandwidths[lane.name][-len(lane.figures) :]  # the turn that warmed up left out
                pairs = zip(lane.figures, beside, strict=True)
                shares.append(replace(lane, figures=tuple(100 * f * needed / b for f, b in pairs)))
        usual = statistics.median(b for found in bandwidths.values() for b in found)
        how = f"{reader.how}, before each turn"
        self.emit("limits", asdict(Limits(weights, cached, usual, how, tuple(shares))))
        least = self.engine.bars.get("bandwidth_share")
        own = race.lanes[0]
        if least is not None and own.figures:
            self.bench.share(f"share of the limit, {own.name}", shares[0].figures, at_least=100 * least)

    def _add_points(self, part: str, race: Race, operations: float, moved: float) -> None:
        """For the picture: operations and bytes are those of one token."""
        for lane in race.lanes:
            if lane.figures:
                self.points.append(Point(lane.name, part, operations / moved, lane.median * operations))

    def _bars(self, runners: Sequence[Runner]) -> list[tuple[str, str, float]]:
        least = self.engine.bars.get("mlx_lm")
        names = [r.name for r in runners]
        return [(names[0], MLX_LM, least)] if least is not None and MLX_LM in names else []

    def _worth_it(self, runner: Runner, what: str, seconds: float) -> bool:
        """Whether a turn of so many seconds is waited for; says so where it is not."""
        if seconds <= LONGEST_PREFILL:
            return True
        self.bench.note(f"{runner.name}, {what}: not timed, a turn could take {seconds / 60:.0f} min.")
        return False

    def _longest(self) -> int:
        return getattr(self.weights.args, "max_position_embeddings", None) or 32768


def _reading(runner: Runner) -> Callable[[Ids], mx.array]:
    def run(ids: Ids) -> mx.array:
        return runner.read(ids)[0]

    return run


def _noting(reader: machine.MemoryReader | None, bandwidths: list[float]) -> Callable[[], None]:
    """Measures the memory's bandwidth and adds it to the list."""
    if reader is None:
        return lambda: None
    return lambda: bandwidths.append(reader.per_second(machine.READ_AGAIN_PASSES))


def _decoding(
    runner: Runner, start: int, steps: int, remark: str, before_each: Callable[[], None]
) -> Contestant:
    """Decode `steps` tokens after `start` ones. The ids are given, so that all read the same."""

    def setup(ids: Ids) -> tuple[Ids, Any]:
        cache = None
        if runner.make_cache is not None:
            logits, cache = runner.read(ids[:, :start])
            mx.eval(logits)
        before_each()
        return ids, cache

    def run(given: tuple[Ids, Any]) -> mx.array:
        ids, cache = given
        first = None
        for offset in range(start, start + steps):
            logits = runner.step(ids[:, : offset + 1], offset, cache)
            mx.argmax(logits[0, -1]).item()  # the token that a greedy reply would go on with
            first = logits[:, -1] if first is None else first
        return first

    return Contestant(runner.name, run, setup, work=steps, remark=remark)


def traffic(mlx_model: Any) -> Traffic:
    """The traffic of an mlx-lm model, packed or not, by its parameters."""
    args = mlx_model.args
    parameters = dict(tree_flatten(mlx_model.parameters()))
    weight_bytes = weight_numbers = head_numbers = 0
    for name, array in parameters.items():
        layer, _, part = name.rpartition(".")
        reads_all = layer != "model.embed_tokens" or args.tie_word_embeddings  # tied: it is the head as well
        weight_bytes += array.nbytes if reads_all else array.nbytes // array.shape[0]
        if part == "weight" and array.ndim == 2 and reads_all:
            packed = f"{layer}.scales" in parameters
            numbers = _numbers(mlx_model, layer, array) if packed else array.size
            weight_numbers += numbers
            if layer in ("model.embed_tokens", "lm_head"):
                head_numbers += numbers
    heads = args.num_attention_heads
    dim = getattr(args, "head_dim", None) or args.hidden_size // heads
    item = parameters["model.norm.weight"].itemsize
    cache = 2 * args.num_hidden_layers * args.num_key_value_heads * dim * item
    return Traffic(weight_bytes, weight_numbers, head_numbers, cache, args.num_hidden_layers * heads * dim)


def _numbers(mlx_model: Any, path: str, packed: mx.array) -> int:
    """How many numbers a packed weight holds."""
    layer = mlx_model
    for part in path.split("."):
        layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    return packed.size * 32 // layer.bits
