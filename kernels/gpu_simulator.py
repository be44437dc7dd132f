"""Runs a GPU kernel's body on the CPU: slowly, counting, and saying what a GPU would let pass.

The body is compiled as C++ against msl/simulator.h, once for each kernel, template and dtypes; the library is
kept in the user's cache folder by the hash of all that went into it. msl/runtime.cpp runs it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import build, cache
from .gpu_source import POSITIONS as POSITION_TYPES
from .gpu_source import DoesNotCompile, GpuFault, Kernel, Source

if TYPE_CHECKING:
    import mlx.core as mx

FOLDER = Path(__file__).parent / "msl"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w")
REPORTS = 5  # a kernel that goes wrong goes wrong in every thread: the first few say it


@dataclass(frozen=True)
class Report:
    """One thing that is wrong with a kernel, where it was first seen."""

    file: str
    line: int
    text: str  # a sentence without its full stop
    times: int  # how often it was seen

    def __str__(self) -> str:
        more = f" (and {self.times - 1} more times)" if self.times > 1 else ""
        return f"{self.file}:{self.line}: {self.text}{more}"


class KernelFault(GpuFault, RuntimeError):
    """A kernel did what no kernel may. `reports` holds what, the first few."""

    def __init__(self, reports: Sequence[Report]) -> None:
        super().__init__("\n".join(map(str, reports)))
        self.reports = tuple(reports)
        self.place = (reports[0].file, reports[0].line, reports[0].text)


@dataclass(frozen=True)
class Launch:
    """What a launch in the simulator cost. Bytes are those that the threads asked for: nothing is cached."""

    kernel: str
    grid: tuple[int, int, int]  # threads
    threadgroup: tuple[int, int, int]
    read: Mapping[str, int]  # bytes of device memory, by buffer
    written: Mapping[str, int]
    lines: Mapping[
        str, int
    ]  # of 128 bytes, fetched to read from each buffer: what lanes read in step is one request
    most_read: int  # bytes, by the busiest thread
    most_written: int
    threadgroup_memory: int  # bytes that one threadgroup holds
    threadgroup_read: int  # bytes, by all threads
    threadgroup_written: int
    barriers: int  # passed, one for each threadgroup
    simd_operations: int  # one for each SIMD-group

    @property
    def bytes_read(self) -> int:
        """Bytes of device memory that all threads read together."""
        return sum(self.read.values())

    @property
    def bytes_written(self) -> int:
        return sum(self.written.values())


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("element", ctypes.c_uint32),
        ("output", ctypes.c_uint32),
        ("read", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("lines", ctypes.c_uint64),
        ("writer", ctypes.c_void_p),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("line", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("times", ctypes.c_int32),
        ("text", ctypes.c_char * 384),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("buffers", ctypes.c_uint32),
        ("buffer", ctypes.POINTER(_Buffer)),
        ("scalars", ctypes.POINTER(ctypes.c_uint32)),
        ("capacity", ctypes.c_uint32),
        ("reports", ctypes.c_uint32),
        ("report", ctypes.POINTER(_Report)),
        ("most_read", ctypes.c_uint64),
        ("most_written", ctypes.c_uint64),
        ("shared_bytes", ctypes.c_uint64),
        ("shared_read", ctypes.c_uint64),
        ("shared_written", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("simd_operations", ctypes.c_uint64),
    )


def launch(
    source: Source,
    kernel: Kernel,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    scalars: Sequence[int],
    template: Mapping[str, int | str],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
) -> tuple[list[mx.array], Launch]:
    """Run the kernel; the outputs, and what it cost. `scalars` are the bits of each, as unsigned numbers.

    `template` has Metal's name of a type ("half") for each typename. Raises KernelFault, DoesNotCompile,
    build.NoCompiler.
    """
    import mlx.core as mx

    run = _load(library(source, kernel, template))
    mx.eval(list(inputs))
    memory = [ctypes.create_string_buffer(_bytes(a), max(1, a.nbytes)) for a in inputs]
    buffers = (_Buffer * len(kernel.buffers))()
    kept = []
    for slot, buffer, data, array in zip(buffers, kernel.inputs, memory, inputs, strict=False):
        slot.name, slot.data = buffer.name.encode(), ctypes.addressof(data)
        slot.bytes, slot.element = array.nbytes, array.itemsize
    results = []
    for slot, buffer, (shape, dtype) in zip(
        list(buffers)[len(inputs) :], kernel.outputs, outputs, strict=True
    ):
        size = math.prod(shape)
        data = ctypes.create_string_buffer(b"\xff" * (size * dtype.size), max(1, size * dtype.size))
        writer = (ctypes.c_uint32 * max(1, size))()
        kept += [data, writer]
        slot.name, slot.data = buffer.name.encode(), ctypes.addressof(data)
        slot.bytes, slot.element, slot.output = size * dtype.size, dtype.size, 1
        slot.writer = ctypes.addressof(writer)
        results.append((data, shape, dtype))
    # subtle: list(buffers) copies no memory, its entries are views of the array's
    reports = (_Report * REPORTS)()
    values = (ctypes.c_uint32 * max(1, len(scalars)))(*scalars)
    call = _Launch(
        grid=grid,
        group=threadgroup,
        buffers=len(buffers),
        buffer=buffers,
        scalars=values,
        capacity=REPORTS,
        report=reports,
    )
    run(ctypes.byref(call))
    if call.reports:
        raise KernelFault(
            [
                Report(source.name, r.line or kernel.line, r.text.decode(errors="replace"), r.times)
                for r in reports[: call.reports]
            ]
        )
    record = Launch(
        kernel=kernel.name,
        grid=grid,
        threadgroup=threadgroup,
        read={b.name.decode(): b.read for b in buffers},
        written={b.name.decode(): b.written for b in buffers},
        lines={b.name.decode(): b.lines for b in buffers},
        most_read=call.most_read,
        most_written=call.most_written,
        threadgroup_memory=call.shared_bytes,
        threadgroup_read=call.shared_read,
        threadgroup_written=call.shared_written,
        barriers=call.barriers,
        simd_operations=call.simd_operations,
    )
    return [_array(*result) for result in results], record


def _bytes(array: mx.array) -> bytes:
    import mlx.core as mx

    flat = mx.contiguous(array).reshape(-1)
    return bytes(memoryview(flat.view(mx.uint8))) if array.size else b""


def _array(data: ctypes.Array[ctypes.c_char], shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    import mlx.core as mx

    size = math.prod(shape) * dtype.size
    flat = mx.array(memoryview(data).cast("B")[:size], dtype=mx.uint8)
    return flat.view(dtype).reshape(shape)


# ---- compiling ----


def library(source: Source, kernel: Kernel, template: Mapping[str, int | str]) -> Path:
    """The compiled kernel's file; compiles it if it is not there. Several processes may call it at once."""
    compiler = build.find_compiler()
    made_of = [
        _setup(compiler),
        source.name,
        source.relevant(kernel),
        repr(kernel.buffers),
        repr(kernel.scalars),
        repr(sorted(template.items())),
    ]
    kept = cache.folder("simulator")
    compiled = kept / f"{kernel.name}-{_hash(made_of)}.so"
    if compiled.is_file():
        return compiled
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            text = Path(folder) / "kernel.cpp"
            text.write_text(translation_unit(source, kernel, template), encoding="utf-8")
            made = Path(folder) / "kernel.so"
            command = [compiler, *FLAGS, "-shared", f"-I{FOLDER}", str(text), str(_runtime(compiler, kept))]
            output = _run([*command, "-o", str(made)])
            if output is not None:
                raise _complaint(output, source, kernel)
            made.replace(compiled)
    except OSError as error:
        raise build.BuildFault(f"{error.filename or kept}: {error.strerror}") from None
    return compiled


def translation_unit(source: Source, kernel: Kernel, template: Mapping[str, int | str]) -> str:
    """The C++ that one instance of a kernel becomes."""
    helpers, body = source.cpp(kernel)
    parameters = [
        f"Device<{'' if b.output else 'const '}{template.get(b.element, b.element)}> {b.name}"
        for b in kernel.buffers
    ]
    parameters += [f"const {s.type} {s.name}" for s in kernel.scalars]
    aliases = [f"using {name} = {template[name]};" for name in kernel.types]
    aliases += [f"constexpr {kind} {name} = {template[name]};" for name, kind in kernel.constants]
    aliases += [f"const {POSITION_TYPES[name]} {name} = at::{name}();" for name in kernel.positions]
    arguments = [f"{{buffers[{i}].data, &buffers[{i}]}}" for i in range(len(kernel.buffers))]
    arguments += [f"as_type<{_word(s.type)}>(scalars[{i}])" for i, s in enumerate(kernel.scalars)]
    return "\n".join(
        [
            '#include "simulator.h"',
            "namespace simulated {",
            helpers,
            f"static void {kernel.name}({', '.join(parameters)}) {{",
            *aliases,
            body,
            "}",
            "static void body(Buffer* buffers, const uint32_t* scalars) {",
            f"  {kernel.name}({', '.join(arguments)});",
            "}",
            "}",
            'extern "C" __attribute__((visibility("default")))',
            "void tinyllm_launch(simulated::Launch* launch) {",
            "  simulated::run(launch, simulated::body);",
            "}",
            "",
        ]
    )


def _word(type_name: str) -> str:
    return "uint" if type_name == "bool" else type_name


def _runtime(compiler: str, kept: Path) -> Path:
    """msl/runtime.cpp, compiled once for all kernels."""
    made = kept / f"runtime-{_hash([_setup(compiler)])}.o"
    if not made.is_file():
        fresh = made.with_name(f"{made.name}.{os.getpid()}.o")
        output = _run([compiler, *FLAGS, "-O2", "-c", str(FOLDER / "runtime.cpp"), "-o", str(fresh)])
        if output is not None:
            raise build.BuildFault(f"the simulator does not compile here:\n{output[:2000]}")
        fresh.replace(made)
    return made


def _run(command: Sequence[str]) -> str | None:
    """Run a compiler: None when it succeeds, else what it says."""
    done = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return None if done.returncode == 0 else done.stdout + done.stderr


def _complaint(output: str, source: Source, kernel: Kernel) -> DoesNotCompile:
    """The compiler's first error, at a line of the learner's file."""
    name = re.escape(source.name)
    error = re.search(r"(?:^|\s)(?:fatal )?error: (.*)$", output, re.M)
    message = _in_metal(error[1].strip()) if error else "it does not compile"
    here = re.search(rf"^(?:.*\s)?{name}:(\d+):(?:\d+:)? (?:fatal )?error: (.*)$", output, re.M)
    if here and error and here.start() <= error.start():
        return DoesNotCompile(source.name, int(here[1]), _in_metal(here[2].strip()), output)
    # The error stands in the simulator's header; the line that led there is in the notes around it.
    led = re.search(rf"{name}:(\d+)", output)
    return DoesNotCompile(source.name, int(led[1]) if led else kernel.line, message, output)


def _in_metal(message: str) -> str:
    """A C++ compiler's message in the kernel's own terms."""
    message = message.replace("simulated::", "")
    message = re.sub(r"Device<const ([\w:]+)>", r"const device \1*", message)
    message = re.sub(r"Device<([\w:]+)>", r"device \1*", message)
    message = re.sub(r"Group<(?:const )?([\w:]+)>", r"threadgroup \1*", message)
    message = re.sub(r"Element<([\w:]+), \w+>", r"\1", message)
    message = message.replace("Small<HalfFormat>", "half").replace("Small<BfloatFormat>", "bfloat")
    return re.sub(r"vec<(\w+), (\d)>", r"\1\2", message)


@functools.cache
def _setup(compiler: str) -> str:
    """Everything but the kernel that decides what is compiled."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [p.read_text(encoding="utf-8") for p in sorted(FOLDER.iterdir()) if p.name != "cuda.h"]
    return _hash([compiler, *said.splitlines()[:1], platform.machine(), *FLAGS, *texts])


@functools.cache
def _load(compiled: Path) -> object:
    run = ctypes.CDLL(str(compiled)).tinyllm_launch
    run.restype = None
    return run


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:16]
