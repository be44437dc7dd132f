"""Reads a tree's .metal file: its kernels, its helpers, and its text as CUDA and as C++ for the simulator.

A kernel is written with the signature that it would have in Metal, but without attributes and without the
parameters for positions, which MLX's launcher adds:

    // cuda: T = float, half; BITS = 4, 8
    template <typename T, int BITS>
    kernel void matvec(const device T* x, const device uint* w, device T* y, constant int& K) { ... }

`const device T*` is an input, `device T*` an output, `constant int&` a number that is known at launch.
Everything outside kernels is for all of them to use. Rewriting works on tokens and never moves a line, so
that what a compiler says holds for the file as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# What a kernel's body may ask about its place, and the type that Metal gives it.
POSITIONS = {
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threads_per_threadgroup": "uint3",
    "threads_per_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "thread_index_in_threadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "threads_per_simdgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
}
ELEMENTS = ("float", "half", "bfloat", "int", "uint", "short", "ushort", "char", "uchar", "bool")
SCALARS = ("int", "uint", "float", "bool")
UNWRITTEN = re.compile(r'NOT_WRITTEN\("([^"\n]*)"\)')
NOT_IN_THE_SUBSET = {
    "simdgroup_matrix": "CUDA has nothing like it",
    "simdgroup_float8x8": "CUDA has nothing like it",
    "simdgroup_half8x8": "CUDA has nothing like it",
    "atomic_fetch_add_explicit": "the simulator has no atomics",
    "atomic_float": "the simulator has no atomics",
    "atomic_uint": "the simulator has no atomics",
    "atomic_int": "the simulator has no atomics",
}

_TOKEN = re.compile(
    r"""(?P<space>\s+|\\\n)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<directive>^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<name>[A-Za-z_]\w*)
      | (?P<number>(?:\d|\.\d)(?:[eE][+-]|[\w.])*)
      | (?P<sign>::|\[\[|\]\]|[-+*/%&|^=<>!]=|&&|\|\||<<|>>|\+\+|--|->|.)""",
    re.X | re.S | re.M,
)


class GpuFault(Exception):
    """What is wrong with a kernel, at a line of its file."""

    place: tuple[str, int, str]  # the file's name, the line, a sentence without its full stop


class DoesNotCompile(GpuFault):
    """A kernel's source is not what it must be. `output` is all that was said."""

    def __init__(self, file: str, line: int, message: str, output: str = "") -> None:
        super().__init__(f"{file}:{line}: {message}" + (f"\n\n{output}" if output else ""))
        self.place = (file, line, message)
        self.file = file
        self.line = line
        self.message = message
        self.output = output


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    line: int

    @property
    def blank(self) -> bool:
        return self.kind in ("space", "comment")


@dataclass(frozen=True)
class Buffer:
    """A pointer in a kernel's signature."""

    name: str
    element: str  # "T", "float", "uint"
    output: bool


@dataclass(frozen=True)
class Scalar:
    name: str
    type: str  # "int", "uint", "float" or "bool"


@dataclass(frozen=True)
class Kernel:
    """One `kernel void` of a file."""

    name: str
    line: int
    types: tuple[str, ...]  # typename parameters
    constants: tuple[tuple[str, str], ...]  # the other template parameters: (name, "int" or "bool")
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    scalars: tuple[Scalar, ...]
    body: tuple[Token, ...]  # between the braces
    cuda: Mapping[str, tuple[str, ...]]  # what `// cuda:` says to compile it with

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.inputs + self.outputs

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(t.text for t in self.body if t.kind == "name")

    @property
    def positions(self) -> list[str]:
        """The positions that the body asks for."""
        return [name for name in POSITIONS if name in self.names]


@dataclass(frozen=True)
class _Item:
    """A statement at the top level of a file: its tokens, whether it defines a function, and its name."""

    tokens: tuple[Token, ...]
    function: str = ""


class Source:
    """A parsed .metal file. `name` is the file's name, for messages."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.replace("\r\n", "\n")
        self.kernels: dict[str, Kernel] = {}
        self._helpers: list[_Item] = []
        for item in self._items():
            if any(t.text == "kernel" and t.kind == "name" for t in item.tokens):
                kernel = self._kernel(item.tokens)
                if kernel.name in self.kernels:
                    self._refuse(kernel.line, f"there are two kernels called {kernel.name}")
                self.kernels[kernel.name] = kernel
            elif not _is_metals_own(item.tokens):
                self._helpers.append(item)

    # ---- what is not written yet ----

    def unwritten(self, kernel: Kernel) -> str:
        """What the first NOT_WRITTEN in the kernel, or in a helper that it uses, says; "" without one."""
        helpers = {i.function: i.tokens for i in self._helpers if i.function}
        seen: set[str] = set()
        waiting: list[Sequence[Token]] = [kernel.body]
        while waiting:
            tokens = waiting.pop(0)
            found = UNWRITTEN.search("".join(t.text for t in tokens))
            if found:
                return found[1]
            named = {t.text for t in tokens if t.kind == "name"} & helpers.keys()
            waiting += [helpers[name] for name in sorted(named - seen)]
            seen |= named
        return ""

    # ---- the same text for each target ----

    def relevant(self, kernel: Kernel) -> str:
        """All text that decides what `kernel` is: itself and the helpers, without the other kernels."""
        return self._marked(t for i in self._helpers for t in i.tokens) + self._marked(kernel.body)

    def metal(self, kernel: Kernel) -> tuple[str, str]:
        """(header, body) for mx.fast.metal_kernel."""
        return self._text([t for i in self._helpers for t in i.tokens]), self._text(kernel.body)

    def cuda(self, kernel: Kernel) -> tuple[str, str]:
        """(helpers, body) as CUDA; the prelude of msl/cuda.h comes before."""
        helpers = [t for item in self._helpers for t in self._cuda_helper(item)]
        return self._text(helpers), self._text(self._cuda(kernel.body))

    def cpp(self, kernel: Kernel) -> tuple[str, str]:
        """(helpers, body) as C++ for the simulator."""
        helpers = [t for item in self._helpers for t in self._cpp(item.tokens)]
        return self._text(helpers), self._text(self._cpp(kernel.body))

    def _marked(self, tokens: Iterator[Token]) -> str:
        """Text with the lines on which things stand: two states that differ in them are two states."""
        return "".join(f"{t.line}:{t.text}\0" for t in tokens if not t.blank)

    def _text(self, tokens: Sequence[Token]) -> str:
        """The tokens' text, with a #line wherever the next one does not stand where the last one ended."""
        parts: list[str] = []
        at = -1
        for token in tokens:
            if token.line != at:
                parts.append(f'\n#line {token.line} "{self.name}"\n')
            text = token.text if token.kind != "comment" else "\n" * token.text.count("\n") or " "
            parts.append(text)
            at = token.line + token.text.count("\n")
        return "".join(parts)

    # ---- reading ----

    def _items(self) -> Iterator[_Item]:
        tokens = list(self._tokens())
        depth, parens, start, first_paren = 0, 0, 0, False
        is_function = False
        item_began = False
        before = ""
        for index, token in enumerate(tokens):
            if token.blank or token.kind == "directive":
                if token.kind == "directive" and not item_began and depth == 0:
                    yield _Item(tuple(tokens[start : index + 1]))
                    start = index + 1
                continue
            item_began = True
            if token.text in ("(", "["):
                parens += 1
                first_paren = first_paren or (token.text == "(" and depth == 0)
            elif token.text in (")", "]"):
                parens -= 1
            elif token.text == "{":
                if depth == 0:
                    is_function = first_paren and not self._is_type(tokens[start:index])
                depth += 1
            elif token.text == "}":
                depth -= 1
                if depth < 0:
                    self._refuse(token.line, "a `}` too many")
            if token.text in ("=", ";", ",", ")") and before == "thread":
                self._refuse(
                    token.line, "`thread` is a word of the language: call the variable something else"
                )
            before = token.text
            ends = (token.text == ";" and depth == 0 and parens == 0) or (
                token.text == "}" and depth == 0 and is_function
            )
            if ends:
                part = tuple(tokens[start : index + 1])
                yield _Item(part, self._function_name(part) if is_function else "")
                start, first_paren, is_function, item_began, parens = index + 1, False, False, False, 0
        rest = [t for t in tokens[start:] if not t.blank]
        if rest:
            self._refuse(rest[0].line, "what begins here does not end: is a `}` or a `;` missing?")

    @staticmethod
    def _is_type(tokens: Sequence[Token]) -> bool:
        return any(t.text in ("struct", "class", "enum", "namespace", "union") for t in tokens)

    @staticmethod
    def _function_name(tokens: Sequence[Token]) -> str:
        solid = [t for t in tokens if not t.blank]
        opening = next(i for i, t in enumerate(solid) if t.text == "(")
        return solid[opening - 1].text if opening else ""

    def _tokens(self) -> Iterator[Token]:
        line = 1
        for match in _TOKEN.finditer(self.text):
            text = match[0]
            if text in NOT_IN_THE_SUBSET:
                self._refuse(line, f"{text} cannot be used here: {NOT_IN_THE_SUBSET[text]}")
            yield Token(match.lastgroup or "sign", text, line)
            line += text.count("\n")

    def _kernel(self, tokens: tuple[Token, ...]) -> Kernel:
        solid = [t for t in tokens if not t.blank]
        line = solid[0].line
        at = 0
        types: list[str] = []
        constants: list[tuple[str, str]] = []
        if solid[at].text == "template":
            end = next((i for i, t in enumerate(solid) if t.text == ">"), 0)
            for part in _split(solid[at + 2 : end]):
                words = [t.text for t in part]
                if len(words) == 2 and words[0] in ("typename", "class"):
                    types.append(words[1])
                elif len(words) == 2 and words[0] in ("int", "uint", "bool"):
                    constants.append((words[1], "bool" if words[0] == "bool" else "int"))
                else:
                    self._refuse(line, f"template parameter `{' '.join(words)}`: write typename, int or bool")
            at = end + 1
        words = [t.text for t in solid[at : at + 4]]
        if words[:2] != ["kernel", "void"] or words[3:] != ["("]:
            self._refuse(solid[at].line, "a kernel begins with `kernel void name(`")
        name = words[2]
        line = solid[at].line
        close = next((i for i in range(at, len(solid)) if solid[i].text == ")"), 0)
        inputs: list[Buffer] = []
        outputs: list[Buffer] = []
        scalars: list[Scalar] = []
        for part in _split(solid[at + 4 : close]):
            parameter = self._parameter(part, types)
            if isinstance(parameter, Scalar):
                scalars.append(parameter)
            else:
                (outputs if parameter.output else inputs).append(parameter)
        if not outputs:
            self._refuse(
                line, f"{name} has no output: none of its parameters is a `device` pointer without const"
            )
        if solid[close + 1].text != "{":
            self._refuse(solid[close + 1].line, "a `{` must follow the parameters")
        opening = tokens.index(solid[close + 1])
        return Kernel(
            name,
            line,
            tuple(types),
            tuple(constants),
            tuple(inputs),
            tuple(outputs),
            tuple(scalars),
            tokens[opening + 1 : -1],
            self._cuda_line(tokens),
        )

    def _parameter(self, part: Sequence[Token], types: Sequence[str]) -> Buffer | Scalar:
        words = [t.text for t in part]
        line = part[0].line
        if "[[" in words:
            self._refuse(line, "write the parameters without attributes: the launcher adds them")
        if words[0] == "constant" and len(words) == 4 and words[2] == "&" and words[1] in SCALARS:
            return Scalar(words[3], words[1])
        plain = [w for w in words if w != "const"]
        if len(plain) == 4 and plain[0] == "device" and plain[2] == "*":
            if plain[1] not in (*ELEMENTS, *types):
                self._refuse(
                    line, f"{plain[1]} is neither a template parameter nor one of {', '.join(ELEMENTS)}"
                )
            return Buffer(plain[3], plain[1], output="const" not in words)
        raise DoesNotCompile(
            self.name,
            line,
            f"parameter `{' '.join(words)}`: an input is `const device T* x`, an output `device T* y`, "
            "a number `constant int& K`",
        )

    def _cuda_line(self, tokens: Sequence[Token]) -> dict[str, tuple[str, ...]]:
        """What a comment `// cuda: T = float, half; BITS = 4, 8` above the kernel says."""
        for token in tokens:
            if token.kind == "comment" and re.match(r"//\s*cuda:", token.text):
                pairs = [p.split("=") for p in token.text.partition(":")[2].split(";") if p.strip()]
                if any(len(p) != 2 for p in pairs):
                    self._refuse(token.line, "write `// cuda: T = float, half; BITS = 4, 8`")
                return {k.strip(): tuple(v.strip() for v in vs.split(",")) for k, vs in pairs}
        return {}

    def _refuse(self, line: int, message: str) -> None:
        raise DoesNotCompile(self.name, line, message)

    # ---- CUDA ----

    def _cuda_helper(self, item: _Item) -> list[Token]:
        """A helper as CUDA: functions and constants are marked for the device."""
        tokens = list(self._cuda(item.tokens))
        first = next((i for i, t in enumerate(tokens) if not t.blank), None)
        if first is None:
            return tokens
        if item.function:
            if tokens[first].text == "template":
                _, first = _type_after(tokens, first - 1)  # behind its <...>
            line = tokens[min(first, len(tokens) - 1)].line
            tokens.insert(first, Token("name", " __device__ ", line))
        return tokens

    def _cuda(self, tokens: Sequence[Token]) -> Iterator[Token]:
        constexpr = any(t.text == "constexpr" for t in tokens)
        for index, token in enumerate(tokens):
            text = token.text
            if token.kind != "name":
                yield token
            elif text in ("device", "thread", "METAL_FUNC"):
                yield Token("space", " ", token.line)
            elif text == "metal" and _next(tokens, index, 1) == "::":
                yield Token("space", " ::mlx::core::cu", token.line)
            elif text == "constant":
                yield Token(
                    "name",
                    " " if constexpr or self._points(tokens, index) else "__constant__ const",
                    token.line,
                )
            elif text == "threadgroup":
                yield Token("name", " " if self._points(tokens, index) else "__shared__", token.line)
            else:
                yield token

    def _points(self, tokens: Sequence[Token], index: int) -> bool:
        """Whether `*` or `&` follows the type that follows an address space: then it is part of a pointer."""
        _, after = _type_after(tokens, index)
        return after < len(tokens) and tokens[after].text in ("*", "&")

    # ---- C++ for the simulator ----

    def _cpp(self, tokens: Sequence[Token]) -> Iterator[Token]:
        result: list[Token] = []
        index = 0
        constexpr = any(t.text == "constexpr" for t in tokens)
        while index < len(tokens):
            token = tokens[index]
            if token.kind != "name":
                result.append(token)
                index += 1
                continue
            text = token.text
            if text in ("thread", "METAL_FUNC"):
                result.append(Token("space", " ", token.line))
            elif text == "metal" and _next(tokens, index, 1) == "::":
                result.append(Token("space", " ::simulated", token.line))
            elif text == "constant":
                result.append(Token("name", " " if constexpr else "const", token.line))
            elif text in ("device", "threadgroup"):
                index = self._cpp_space(tokens, index, result)
                continue
            else:
                result.append(token)
            index += 1
        return iter(result)

    def _cpp_space(self, tokens: Sequence[Token], index: int, result: list[Token]) -> int:
        """Rewrite `device T*`, `threadgroup T*` or `threadgroup T x[N], y[M];`; the index behind it."""
        space = tokens[index].text
        line = tokens[index].line
        constant, after = _type_after(tokens, index)
        element = "".join(t.text for t in tokens[index + 1 : after] if not t.blank and t.text != "const")
        # subtle: `const device T*` has its const before the address space
        solid = [i for i, t in enumerate(result) if not t.blank]
        if solid and result[solid[-1]].text == "const":
            constant = True
            result[solid[-1]] = Token("space", " ", result[solid[-1]].line)
        gap = "\n" * (sum(t.text.count("\n") for t in tokens[index:after]))
        sign = tokens[after].text if after < len(tokens) else ""
        if not element:
            self._refuse(line, f"a type must follow `{space}`")
        if sign == "*":
            kind = "Device" if space == "device" else "Group"
            result.append(Token("name", f"{kind}<{'const ' if constant else ''}{element}>{gap}", line))
            return after + 1
        if sign == "&" or (sign == "(" and space == "threadgroup"):
            self._refuse(line, f"a reference to {space} memory is not in the subset: take a pointer")
        if space == "device":
            self._refuse(line, "`device` belongs to a pointer: `device T*`")
        # arrays: each declarator becomes a checked array, which all threads of a group share
        end = next((i for i in range(after, len(tokens)) if tokens[i].text == ";"), len(tokens))
        declared = []
        for part in _split([t for t in tokens[after:end] if not t.blank]):
            name, extents = part[0].text, "".join(t.text for t in part[1:])
            if "=" in extents:
                self._refuse(
                    part[0].line, f"{name}: threadgroup memory cannot be given a value where it is declared"
                )
            kind = f"Shared<{element}{extents}>" if extents else f"SharedOne<{element}>"
            declared.append(f'{kind} {name}{{"{name}", {part[0].line}}}')
        lines = "\n" * sum(t.text.count("\n") for t in tokens[index:end])
        result.append(Token("name", "; ".join(declared) + lines, line))
        return end


def _is_metals_own(tokens: Sequence[Token]) -> bool:
    """Whether a statement is how every Metal file begins: MLX says it for us, other targets need none."""
    solid = [t.text for t in tokens if not t.blank]
    return solid == ["using", "namespace", "metal", ";"] or (
        len(solid) == 1 and re.match(r"\s*#\s*include\s*<metal", solid[0]) is not None
    )


def _next(tokens: Sequence[Token], index: int, step: int) -> str:
    """The text of the next token that is neither space nor comment."""
    index += step
    while 0 <= index < len(tokens) and tokens[index].blank:
        index += step
    return tokens[index].text if 0 <= index < len(tokens) else ""


def _type_after(tokens: Sequence[Token], index: int) -> tuple[bool, int]:
    """The type that follows tokens[index]: whether it is const, and the index of what follows it."""
    constant, seen = False, False
    index += 1
    while index < len(tokens):
        token = tokens[index]
        if token.blank:
            index += 1
        elif token.text == "const":
            constant = True
            index += 1
        elif token.kind == "name" and (not seen or tokens[index - 1].text == "::"):
            seen = True
            index += 1
        elif token.text == "::" and seen:
            index += 1
        elif token.text == "<" and seen:
            depth = 0
            while index < len(tokens):
                depth += {"<": 1, ">": -1}.get(tokens[index].text, 0)
                index += 1
                if depth == 0:
                    break
        else:
            break
    return constant, index


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens between commas, of those that are not in brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in "([{<") - (token.text in ")]}>") if len(token.text) == 1 else 0
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [p for p in parts if p]
