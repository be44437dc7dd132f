"""Compiles kernels for CUDA with NVRTC, which needs no GPU: what it refuses is seen on any Linux machine.

    python -P -m tinyllm.kernels.gpu_cuda_check reference/kernels/quantized_matmul.metal

The text is put together as mx.fast.cuda_kernel does it: its header, ours, and a __global__ function with an
argument for each array and the template's values declared where the body begins.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path

from . import gpu
from .gpu_source import DoesNotCompile, Kernel, Source

PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12")
ARCHITECTURE = "compute_80"

# MLX's own header has more; of it the bodies may rely on nothing but these.
HEADER = """
namespace cooperative_groups {}
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
"""
CUDA_TYPES = {
    "float": "float",
    "half": "__half",
    "bfloat": "__nv_bfloat16",
    "int": "int32_t",
    "uint": "uint32_t",
    "short": "int16_t",
    "ushort": "uint16_t",
    "char": "int8_t",
    "uchar": "uint8_t",
    "bool": "bool",
}


class NoNvrtc(Exception):
    """NVRTC is not installed here; the message says how to get it."""


def check_file(path: Path) -> list[str]:
    """Compile every instance of every kernel in a .metal file; the names of what was compiled.

    Raises DoesNotCompile (at a line of the file) and NoNvrtc.
    """
    source = Source(path.name, path.read_text(encoding="utf-8"))
    done = []
    for kernel in source.kernels.values():
        for template in instances(source, kernel):
            compile_kernel(source, kernel, template)
            values = ", ".join(map(str, template.values()))
            done.append(f"{kernel.name}<{values}>" if values else kernel.name)
    return done


def instances(source: Source, kernel: Kernel) -> Iterator[dict[str, str]]:
    """The template values that the kernel's `// cuda:` line asks for, every combination."""
    names = [*kernel.types, *(name for name, _ in kernel.constants)]
    missing = [n for n in names if not kernel.cuda.get(n)]
    if missing:
        raise DoesNotCompile(
            source.name,
            kernel.line,
            f"{kernel.name} has no line `// cuda: {missing[0]} = ...` above it: NVRTC needs values",
        )
    for values in itertools.product(*(kernel.cuda[n] for n in names)):
        yield dict(zip(names, values, strict=True))


def compile_kernel(source: Source, kernel: Kernel, template: Mapping[str, str]) -> None:
    """Compile one instance. Raises DoesNotCompile and NoNvrtc."""
    output = _nvrtc(translation_unit(source, kernel, template))
    if output is None:
        return
    here = re.search(
        rf"^{re.escape(source.name)}\((\d+)\): (?:catastrophic )?error[^:]*: (.*)$", output, re.M
    )
    error = re.search(r"error[^:]*: (.*)$", output, re.M)
    message = here[2] if here else error[1] if error else "NVRTC refuses it"
    raise DoesNotCompile(
        source.name, int(here[1]) if here else kernel.line, f"as CUDA: {message.strip()}", output
    )


def translation_unit(source: Source, kernel: Kernel, template: Mapping[str, str]) -> str:
    """What MLX would hand to NVRTC."""
    header, body = gpu.parts(source, kernel, "cuda")

    def pointer(element: str) -> str:
        return CUDA_TYPES[template.get(element, element)]

    arguments = [f"const {pointer(b.element)}* {b.name}" for b in kernel.inputs]
    arguments += [f"const uint32_t* {gpu.SCALARS}"] * bool(kernel.scalars)
    arguments += [f"{pointer(b.element)}* {b.name}" for b in kernel.outputs]
    values = [f"using {n} = {CUDA_TYPES[template[n]]};" for n in kernel.types]
    values += [f"constexpr {kind} {n} = {template[n]};" for n, kind in kernel.constants]
    return "\n".join(
        [
            HEADER,
            header,
            "namespace mlx::core::cu {",
            "namespace cg = cooperative_groups;",
            f"__global__ void {kernel.name}({', '.join(arguments)}) {{",
            *values,
            body,
            "}",
            "}",
        ]
    )


def _folder(package: str) -> Path:
    try:
        spec = util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise NoNvrtc(f"NVRTC is not installed here: pip install {' '.join(PACKAGES)}")
    return Path(next(iter(spec.submodule_search_locations)))


def _library() -> ctypes.CDLL:
    found = sorted((_folder("nvidia.cuda_nvrtc") / "lib").glob("libnvrtc.so.*"))
    if not found:
        raise NoNvrtc(f"NVRTC's library is not in {PACKAGES[0]}")
    return ctypes.CDLL(str(found[0]))


def _nvrtc(text: str) -> str | None:
    """None when NVRTC compiles the text, else what it says."""
    nvrtc = _library()
    options = [
        f"--gpu-architecture={ARCHITECTURE}",
        "--std=c++17",
        f"--include-path={_folder('nvidia.cuda_runtime') / 'include'}",
    ]
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        if nvrtc.nvrtcCompileProgram(program, len(options), given) == 0:
            return None
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return log.value.decode(errors="replace")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def main(files: list[str]) -> int:
    """Check files and say what was compiled; the exit code, 0 when nothing is wrong."""
    wrong = 0
    for file in files:
        try:
            done = check_file(Path(file))
        except DoesNotCompile as error:
            print(f"{file}:{error.line}: {error.message}")
            wrong += 1
        except NoNvrtc as error:
            # Where there is no wheel (macOS) nothing can be said.
            print(error)
            return int(sys.platform == "linux")
        else:
            print(f"{file}: {len(done)} kernels compile for CUDA: {', '.join(done)}")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
