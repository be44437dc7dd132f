"""Launches a tree's GPU kernels: on Apple's GPUs, on NVIDIA's, or in a simulator where there is neither.

    from tinyllm.kernels import gpu
    _metal = gpu.of(__name__, "quantized_matmul.metal")
    (y,) = _metal.launch("matvec", inputs={"x": x}, outputs={"y": (M, N)}, scalars={"K": K},
                         grid=(32 * N, M, 1), threadgroup=(32, 4, 1))

gpu_source.py says what a .metal file looks like. Metal and CUDA differ in a few ways that are hidden here:
what becomes of a grid that is no multiple of the threadgroup (refused), of small inputs (padded, so that they
are `device` memory everywhere), of numbers (handed over in one small array), and by what name a compiled
kernel is remembered (one that holds the hash of its text).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import gpu_simulator
from .gpu_simulator import KernelFault as KernelFault  # for whoever launches
from .gpu_simulator import Launch as Launch
from .gpu_simulator import Report as Report
from .gpu_source import POSITIONS, Buffer, Kernel, Source
from .gpu_source import DoesNotCompile as DoesNotCompile

DEVICES = ("auto", "metal", "cuda", "simulator")
MOST_THREADS = 1024  # of a threadgroup
LEAST_ELEMENTS = 8  # MLX hands a smaller input to a Metal kernel as `constant` memory, not `device`
SCALARS = "launch_scalars"  # the input that holds the numbers

DTYPES = {
    "float": mx.float32,
    "half": mx.float16,
    "bfloat": mx.bfloat16,
    "int": mx.int32,
    "uint": mx.uint32,
    "short": mx.int16,
    "ushort": mx.uint16,
    "char": mx.int8,
    "uchar": mx.uint8,
    "bool": mx.bool_,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Triple = tuple[int, int, int]

_overlays: dict[str, dict[str, Path]] = {}
_simulations: list[list[Launch]] = []


def of(module: str, file: str) -> Kernels:
    """The kernels in kernels/`file` of the tree that `module` (its __name__) belongs to.

    Nothing is read before the first launch, so that a file with a mistake in it does not stop an import.
    """
    package = ".".join(module.split(".")[:2])  # "tinyllm.exercises"
    return Kernels(package, file)


def overlay(package: str, files: Mapping[str, Path]) -> None:
    """From now on other files stand for some of the kernels of a tree ("tinyllm.reference"); by file name."""
    _overlays[package] = {name: Path(file) for name, file in files.items()}


@contextlib.contextmanager
def simulated() -> Iterator[list[Launch]]:
    """Every launch in the block runs in the simulator; the list fills with what each cost."""
    launches: list[Launch] = []
    _simulations.append(launches)
    try:
        yield launches
    finally:
        _simulations.remove(launches)


def device() -> str:
    """What "auto" launches on: "metal" or "cuda" when MLX computes there by default, else "simulator"."""
    if mx.default_device() == mx.gpu:
        if mx.metal.is_available():
            return "metal"
        if mx.cuda.is_available():
            return "cuda"
    return "simulator"


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


class Kernels:
    """One .metal file of a tree."""

    def __init__(self, package: str, file: str) -> None:
        self._package = package
        self._file = file
        self._source: Source | None = None
        self._compiled: dict[Any, Callable[..., list[mx.array]]] = {}

    @property
    def path(self) -> Path:
        """The file that the kernels are read from."""
        replaced = _overlays.get(self._package, {}).get(self._file)
        return replaced or Path(sys.modules[self._package].__path__[0]) / "kernels" / self._file

    @property
    def source(self) -> Source:
        """The file as it was when the first kernel of it was launched. Raises DoesNotCompile."""
        if self._source is None:
            self._source = Source(self._file, self.path.read_text(encoding="utf-8"))
        return self._source

    def launch(
        self,
        name: str,
        *,
        inputs: Mapping[str, mx.array],
        outputs: Mapping[str, tuple[Any, ...]],
        grid: Triple,
        threadgroup: Triple,
        scalars: Mapping[str, float] | None = None,
        template: Mapping[str, int | bool | mx.Dtype] | None = None,
        device: str = "auto",
    ) -> list[mx.array]:
        """Run the kernel called `name`; its outputs, in the order of its signature.

        Args:
            inputs: an array for each `const device` parameter. They are made contiguous.
            outputs: a shape for each `device` parameter, or (shape, dtype).
            grid: threads in all, in x, y and z; each a multiple of the threadgroup's.
            threadgroup: threads of a threadgroup, at most 1024 together.
            scalars: a number for each `constant` parameter.
            template: the template's int and bool parameters; types that no input decides.
            device: "auto", "metal", "cuda" or "simulator"; in a block of `simulated` always the simulator.

        Raises:
            NotImplementedError: the kernel, or a helper that it uses, is not written yet.
            ValueError: what was handed over does not fit the signature.
            DoesNotCompile, KernelFault: the kernel is wrong (the second: in the simulator only).
        """
        kernel = self.source.kernels.get(name)
        if kernel is None:
            known = ", ".join(self.source.kernels) or "none"
            raise ValueError(f"{self._file} has no kernel called {name}; it has {known}")
        call = _Call(kernel, dict(inputs), dict(outputs), dict(scalars or {}), dict(template or {}))
        call.check_grid(grid, threadgroup)
        unwritten = self.source.unwritten(kernel)
        if unwritten:
            raise NotImplementedError(unwritten)
        where = "simulator" if _simulations else _device(device)
        if where == "simulator":
            results, record = gpu_simulator.launch(
                self.source,
                kernel,
                call.arrays,
                call.shapes,
                call.scalar_bits,
                call.template_names,
                grid,
                threadgroup,
            )
            for launches in _simulations:
                launches.append(record)
            return results
        key = (where, name, tuple(call.template.items()), tuple(a.dtype for a in call.arrays))
        run = self._compiled.get(key)
        if run is None:
            run = self._compiled[key] = compiled(self.source, kernel, call.template, where)
        arrays = [_padded(a) for a in call.arrays]
        if kernel.scalars:
            arrays.append(mx.array(call.scalar_bits, dtype=mx.uint32))
        return run(
            inputs=arrays,
            template=list(call.template.items()),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=[shape for shape, _ in call.shapes],
            output_dtypes=[dtype for _, dtype in call.shapes],
            stream=mx.gpu,
        )


class _Call:
    """What one launch hands over, checked against the signature and put in its order."""

    def __init__(
        self,
        kernel: Kernel,
        inputs: dict[str, mx.array],
        outputs: dict[str, tuple[Any, ...]],
        scalars: dict[str, float],
        template: dict[str, Any],
    ) -> None:
        self.kernel = kernel
        self._same("inputs", inputs, [b.name for b in kernel.inputs])
        self._same("outputs", outputs, [b.name for b in kernel.outputs])
        self._same("scalars", scalars, [s.name for s in kernel.scalars])
        self.arrays = [inputs[b.name] for b in kernel.inputs]
        self.template = self._template(template)
        self.shapes = [self._shape(b, outputs[b.name]) for b in kernel.outputs]
        self.scalar_bits = [_bits(s.name, s.type, scalars[s.name]) for s in kernel.scalars]

    @property
    def template_names(self) -> dict[str, int | str]:
        """The template with Metal's names for types, and numbers as they are written in C++."""
        return {
            name: NAMES[value] if isinstance(value, mx.Dtype) else int(value)
            for name, value in self.template.items()
        }

    def _same(self, what: str, given: Mapping[str, Any], wanted: Sequence[str]) -> None:
        if set(given) != set(wanted):
            missing = [n for n in wanted if n not in given]
            unknown = [n for n in given if n not in wanted]
            parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [
                f"has {', '.join(unknown)}, which the signature has not"
            ] * bool(unknown)
            raise ValueError(f"{self.kernel.name}: {what} {' and '.join(parts)}")

    def _template(self, given: dict[str, Any]) -> dict[str, Any]:
        """Every template parameter's value, in the signature's order; types are read off the inputs."""
        kernel = self.kernel
        found: dict[str, mx.Dtype] = {n: given[n] for n in kernel.types if n in given}
        for buffer, array in zip(kernel.inputs, self.arrays, strict=True):
            if not isinstance(array, mx.array):
                raise ValueError(f"{kernel.name}: input {buffer.name} is not an mx.array")
            if array.size == 0:
                raise ValueError(f"{kernel.name}: input {buffer.name} is empty")
            if buffer.element in kernel.types:
                wanted = found.setdefault(buffer.element, array.dtype)
            else:
                wanted = DTYPES[buffer.element]
            if array.dtype != wanted or array.dtype not in NAMES:
                raise ValueError(
                    f"{kernel.name}: input {buffer.name} is {_dtype(array.dtype)}, and {buffer.element} is "
                    f"{_dtype(wanted)}"
                )
        self._same(
            "template", given, [*(n for n in kernel.types if n in given), *(n for n, _ in kernel.constants)]
        )
        missing = [n for n in kernel.types if n not in found]
        if missing:
            raise ValueError(f"{kernel.name}: no input says what {missing[0]} is: give it in template")
        values: dict[str, Any] = dict(found)
        for name, kind in kernel.constants:
            values[name] = bool(given[name]) if kind == "bool" else int(given[name])
        return {name: values[name] for name in (*kernel.types, *(n for n, _ in kernel.constants))}

    def _shape(self, buffer: Buffer, given: tuple[Any, ...]) -> tuple[tuple[int, ...], mx.Dtype]:
        dtype = (
            self.template[buffer.element] if buffer.element in self.kernel.types else DTYPES[buffer.element]
        )
        if len(given) == 2 and isinstance(given[1], mx.Dtype):
            given, said = given
            if said != dtype:
                raise ValueError(
                    f"{self.kernel.name}: output {buffer.name} is {_dtype(dtype)} by its signature, not "
                    f"{_dtype(said)}"
                )
        shape = tuple(int(n) for n in given)
        if math.prod(shape) == 0:
            raise ValueError(f"{self.kernel.name}: output {buffer.name} would be empty, {shape}")
        return shape, dtype

    def check_grid(self, grid: Triple, threadgroup: Triple) -> None:
        name = self.kernel.name
        if len(grid) != 3 or len(threadgroup) != 3 or min(*grid, *threadgroup) < 1:
            raise ValueError(
                f"{name}: grid {grid} and threadgroup {threadgroup} must be three numbers from 1 on"
            )
        if math.prod(threadgroup) > MOST_THREADS:
            raise ValueError(
                f"{name}: threadgroup {threadgroup} has {math.prod(threadgroup)} threads; a GPU takes at "
                f"most {MOST_THREADS}"
            )
        for axis, n, size in zip("xyz", grid, threadgroup, strict=True):
            if n % size:
                raise ValueError(
                    f"{name}: the grid has {n} threads in {axis}, no multiple of the threadgroup's {size}: "
                    f"round it up to {round_up(n, size)}, and let the kernel test its position"
                )


def _device(asked: str) -> str:
    if asked not in DEVICES:
        raise ValueError(f"device {asked!r} is none of {', '.join(DEVICES)}")
    if asked == "auto":
        return device()
    present = {"metal": mx.metal.is_available, "cuda": mx.cuda.is_available, "simulator": lambda: True}
    if not present[asked]():
        raise ValueError(f"this MLX has no {asked}; device='auto' takes the simulator then")
    return asked


def compiled(
    source: Source, kernel: Kernel, template: Mapping[str, Any], where: str
) -> Callable[..., list[mx.array]]:
    """The kernel as MLX's launcher for "metal" or "cuda" has it; compiled at its first call."""
    header, body = parts(source, kernel, where)
    names = [b.name for b in kernel.inputs] + [SCALARS] * bool(kernel.scalars)
    make = mx.fast.metal_kernel if where == "metal" else mx.fast.cuda_kernel
    digest = hashlib.sha256(f"{header}\0{body}\0{template}".encode()).hexdigest()[:12]
    return make(
        name=f"{kernel.name}_{digest}",
        input_names=names,
        output_names=[b.name for b in kernel.outputs],
        source=body,
        header=header,
        ensure_row_contiguous=True,
    )


def parts(source: Source, kernel: Kernel, where: str) -> tuple[str, str]:
    """(header, body) for MLX's launcher. Numbers are unpacked where the body begins."""
    if where == "metal":
        header, body = source.metal(kernel)
        unpacked = _unpacked(kernel)
        return header, f"{unpacked}{body}"
    helpers, body = source.cuda(kernel)
    places = " ".join(f"const {POSITIONS[n]} {n} = at::{n}();" for n in kernel.positions)
    header = f"{_prelude()}\nnamespace mlx::core::cu {{\n{helpers}\n}}\n"
    return header, f"{_unpacked(kernel)}{places}{body}"


def _unpacked(kernel: Kernel) -> str:
    """ "const int K = as_type<int>(launch_scalars[0]);" for each number of the signature."""
    lines = []
    for index, scalar in enumerate(kernel.scalars):
        word = f"{SCALARS}[{index}]"
        value = f"{word} != 0" if scalar.type == "bool" else f"as_type<{scalar.type}>(uint({word}))"
        lines.append(f"const {scalar.type} {scalar.name} = {value};")
    return " ".join(lines)


@functools.cache
def _prelude() -> str:
    """What makes CUDA understand the bodies: msl/cuda.h with msl/vectors.h in its place."""
    folder = gpu_simulator.FOLDER
    vectors = (folder / "vectors.h").read_text(encoding="utf-8").replace("#pragma once\n", "")
    return (folder / "cuda.h").read_text(encoding="utf-8").replace('#include "vectors.h"\n', vectors)


def _padded(array: mx.array) -> mx.array:
    """The array with at least as many elements as MLX hands over in device memory."""
    if array.size >= LEAST_ELEMENTS:
        return array
    flat = array.reshape(-1)
    return mx.concatenate([flat, mx.zeros((LEAST_ELEMENTS - array.size,), dtype=array.dtype)])


def _bits(name: str, kind: str, value: float) -> int:
    """A number of the signature as the 32 bits that hold it."""
    if kind == "float":
        return struct.unpack("<I", struct.pack("<f", value))[0]
    if kind == "bool":
        return int(bool(value))
    if value != int(value):
        raise ValueError(f"scalar {name} is {value}, and the signature says {kind}")
    low, high = (0, 2**32) if kind == "uint" else (-(2**31), 2**31)
    if not low <= value < high:
        raise ValueError(f"scalar {name} is {value}, which no {kind} holds")
    return int(value) % 2**32


def _dtype(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
