"""The calls that lead to a failure, as something to store, run again and write down as Python (in a child).

A story is JSON beside a dict of arrays: steps, each a call whose result has a name, and at the end a
comparison or nothing, where the last step raises. What it cannot hold, such as a model of mlx-lm, makes it
NotStorable, with what that was.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .boundary import Boundary, Call, Callee, Comparison, Held, Moment, Read
from .recording import arrays_in
from .testing import dtype_name

WIDTH = 100
MOST_BYTES = 8 << 20  # of a case's arrays
FOLDED = 3  # calls before the last one that are written out; more are folded into one line
BFLOAT16 = "bfloat16"  # NumPy has none: its bits are kept as uint16


class NotStorable(Exception):
    """The arguments hold something that cannot be written to a file; the message says what."""


# ---- from what was recorded


class Writer:
    """Makes a story of a moment; `arrays` holds what it refers to."""

    def __init__(self, moment: Moment, boundary: Boundary, module_of: Callable[[type], str]) -> None:
        self._moment = moment
        self._seeds = boundary.seeds
        self._own = boundary.own
        self.objects: dict[str, dict[str, Any]] = {}  # of classes of the check's own, by name
        self._module_of = module_of
        self._calls = [e for e in moment.events if isinstance(e, Call)]
        self._names: dict[int, str] = {}  # of arrays given, by id
        self._taken = {"file", "allow_pickle", "got"}  # of the .npz: NumPy's own, and the result
        self._taken_results = {"case", "solution", "a", "mx"}
        self._results: dict[int, str] = {}  # names of results, by position of the call
        self._made: dict[
            int, tuple[int, list[Any]]
        ] = {}  # object -> (position of the call, path in its result)
        self.arrays: dict[str, mx.array | np.ndarray] = {}
        self.notes: dict[str, dict[str, Any]] = {}  # shape, dtype and seed of each
        for position, call in enumerate(self._calls):
            if call.returned:
                self._note_made(call.result, position, [])

    def _note_made(self, value: Any, position: int, path: list[Any]) -> None:
        if value is None or isinstance(value, (bool, int, float, str, bytes, mx.Dtype)):
            return
        self._made.setdefault(id(value), (position, path))
        if isinstance(value, (list, tuple)) and len(path) < 3:
            for i, item in enumerate(value):
                self._note_made(item, position, [*path, i])
        elif isinstance(value, dict) and len(path) < 3:
            for key, item in value.items():
                if isinstance(key, (str, int)):
                    self._note_made(item, position, [*path, key])

    def story(self) -> dict[str, Any]:
        """Steps and comparison. Raises NotStorable."""
        comparison = self._moment.comparison
        last, read = self._last()
        positions = self._needed(last)
        steps = []
        for position in positions:
            call = self._calls[position]
            (args, kwargs), (old_args, old_kwargs) = (call.args, call.kwargs), call.values
            names = parameter_names(call)
            step = {
                "callee": self._callee(call.callee, position),
                "args": [
                    self._encoded(a, old, position, name)
                    for a, old, name in zip(args, old_args, names, strict=False)
                ],
                "kwargs": {k: self._encoded(v, old_kwargs[k], position, k) for k, v in kwargs.items()},
            }
            step["result"] = self._result_name(position, call, last=position == last)
            steps.append(step)
        story: dict[str, Any] = {"steps": steps, "comparison": None, "objects": self.objects}
        if comparison is not None:
            story["comparison"] = self._comparison(comparison, last, read)
        return story

    def _last(self) -> tuple[int, Read | None]:
        """The position of the call that failed, and the attribute read of its object that was judged."""
        moment, comparison = self._moment, self._moment.comparison
        if not self._calls:
            raise NotStorable("the check calls nothing")
        if moment.call is not None:
            return self._calls.index(moment.call), None
        if comparison is None:
            raise NotStorable("the check itself makes something of the results")
        got = comparison.got
        if comparison.method == "raises":
            return len(self._calls) - 1, None
        if comparison.method == "unchanged":
            for position in reversed(range(len(self._calls))):
                call = self._calls[position]
                if any(a is got for a in arrays_in([call.args, call.kwargs])):
                    return position, None
            raise NotStorable("the array that was changed is none of the arguments")
        if id(got) in self._made:
            return self._made[id(got)][0], None
        event = moment.events[-1]
        if isinstance(event, Read) and event.value is got and id(event.of) in self._made:
            return len(self._calls) - 1, event
        if isinstance(event, Call) and event.returned and event.result is got:
            return len(self._calls) - 1, None
        raise NotStorable("the check compares what it makes of the results")

    def _needed(self, last: int) -> list[int]:
        """The calls up to `last` that made or could have changed what it works on."""
        wanted, objects, grown = {last}, set[int](), True
        event = self._moment.events[-1] if self._moment.events else None
        if isinstance(event, Read):
            objects.add(id(event.of))
        while grown:
            before = (len(wanted), len(objects))
            for position in wanted:
                objects |= self._objects(self._calls[position])
            for position, call in enumerate(self._calls[: last + 1]):
                if self._objects(call) & objects or any(
                    self._made.get(o, (-1,))[0] == position for o in objects
                ):
                    wanted.add(position)
            grown = before != (len(wanted), len(objects))
        return sorted(wanted)

    def _objects(self, call: Call) -> set[int]:
        """What a call works on that other calls made: instances, caches, functions; arrays are stored."""
        found = set()
        stack = [call.callee.of, *call.args, *call.kwargs.values()]
        if call.callee.name and call.callee.is_name and call.returned:
            stack.append(call.result)
        while stack:
            value = stack.pop()
            if isinstance(value, mx.array):
                continue
            if id(value) in self._made:
                found.add(id(value))
            if isinstance(value, (list, tuple)):
                stack += value
            elif isinstance(value, dict):
                stack += value.values()
        return found

    def _callee(self, callee: Callee, position: int) -> dict[str, Any]:
        if callee.is_name:
            return {"solution": callee.name, "module": callee.module}
        if callee.of is None:
            raise NotStorable(f"a {callee.name} of the check's own")
        held = self._reference(callee.of, position)
        return {"of": held, "method": callee.name}

    def _reference(self, value: Any, position: int) -> dict[str, Any]:
        made = self._made.get(id(value))
        if made is None or made[0] > position:
            raise NotStorable(_said(value))
        return {"result": self._results[made[0]], "path": made[1]}

    def _encoded(self, value: Any, old: Any, position: int, name: str) -> Any:
        """`value`, whose arrays were `old` before the call, as JSON."""
        if isinstance(value, (mx.array, np.ndarray)):
            return {"array": self._array(value, old, name)}
        if value is None or (isinstance(value, (bool, int, str)) and type(value) in (bool, int, str)):
            return value
        if isinstance(value, (float, np.floating)):
            number = float(value)
            return {"float": number.hex() if np.isfinite(number) else repr(number)}
        if isinstance(value, np.integer):
            return int(value)
        if isinstance(value, mx.Dtype):
            return {"dtype": dtype_name(value)}
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return {"slice": [self._encoded(p, p, position, name) for p in parts]}
        callee = getattr(value, "tinyllm_callee", None)
        if callee is not None:
            return {"solution": callee.name, "module": callee.module}
        if isinstance(value, type):
            if module := self._module_of(value):
                return {"solution": value.__qualname__, "module": module}
            raise NotStorable(f"the class {value.__name__}")
        if id(value) in self._made and self._made[id(value)][0] < position:
            return self._reference(value, position)
        if type(value) in (list, tuple):
            items = [
                self._encoded(v, o, position, f"{name}_{i}")
                for i, (v, o) in enumerate(zip(value, old, strict=True))
            ]
            return {type(value).__name__: items}
        if type(value) is set:
            return {"set": [self._encoded(v, v, position, name) for v in sorted(value, key=repr)]}
        if type(value) is dict:
            return {
                "dict": [
                    [self._encoded(k, k, position, name), self._encoded(v, old[k], position, f"{name}_{k}")]
                    for k, v in value.items()
                ]
            }
        if isinstance(old, Held):
            return {"object": self._object(value, old, name)}
        own = getattr(value, "__name__", "")
        if inspect.isfunction(value) and self._own.get(own) is value:
            return {"own": own}
        raise NotStorable(_said(value))

    def _object(self, value: Any, held: Held, name: str) -> str:
        """An object of a class of the check's own: made anew from what it holds."""
        known = self._names.get(id(value))
        if known is not None:
            return known
        name = _free(name, self._taken)
        self._names[id(value)] = name
        state = {}
        for key, old in held.state.items():
            part = old.of if isinstance(old, Held) else old
            state[key] = self._encoded(part, old, -1, f"{name}_{key}")
        self.objects[name] = {"class": type(value).__name__, "state": state}
        return name

    def _array(self, value: Any, old: Any, name: str) -> str:
        known = self._names.get(id(value))
        if known is not None:
            return known
        name = _free(name, self._taken)
        self._names[id(value)] = name
        kept = mx.array(old) if isinstance(old, mx.array) else np.array(old)
        self.arrays[name] = kept
        note = {"shape": list(kept.shape), "dtype": _dtype_of(kept)}
        if id(value) in self._seeds:
            note["seed"] = self._seeds[id(value)]
        self.notes[name] = note
        if sum(a.nbytes for a in self.arrays.values()) > MOST_BYTES:
            raise NotStorable(f"more than {MOST_BYTES >> 20} MB of arrays")
        return name

    def _result_name(self, position: int, call: Call, *, last: bool) -> str:
        if call.callee.is_name and inspect.isclass(call.result.__class__) and _is_constructor(call):
            base = _snake(call.callee.name)
        else:
            base = "got" if last else "made"
        self._results[position] = name = _free(base, self._taken_results)
        return name

    def _comparison(self, comparison: Comparison, last: int, read: Read | None) -> dict[str, Any]:
        at = len(self._calls)
        got = comparison.got
        if read is not None:
            judged = {**self._reference(read.of, at), "attribute": read.name}
        elif comparison.method == "raises":
            judged = None
        elif comparison.method == "unchanged":
            judged = {"array": self._names[id(got)]}
        elif id(got) in self._made:
            judged = self._reference(got, at)
        else:
            judged = {"result": self._results[last], "path": []}
        others = [a for a in comparison.args if a is not got]
        if comparison.method == "raises":
            others = list(comparison.args[:1])
        names = {"close": ["expected"], "ids": ["expected"], "exact": ["expected"], "unchanged": ["before"]}
        given = names.get(comparison.method, ["expected"])
        encoded = [
            {"error": a.__name__}
            if isinstance(a, type) and issubclass(a, BaseException) and a.__module__ == "builtins"
            else self._encoded(a, a, -1, name)
            for a, name in zip(others, [*given, *["more"] * 8], strict=False)
        ]
        kwargs = {k: self._encoded(_plain(v), _plain(v), -1, k) for k, v in comparison.kwargs.items()}
        return {"method": comparison.method, "got": judged, "args": encoded, "kwargs": kwargs}


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with a number behind it, so that it is nobody else's."""
    name = "".join(c if c.isalnum() else "_" for c in name) or "array"
    found, n = name, 1
    while found in taken:
        n += 1
        found = f"{name}_{n}"
    taken.add(found)
    return found


def _is_constructor(call: Call) -> bool:
    return type(call.result).__name__ == call.callee.name


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _said(value: Any) -> str:
    name = type(value).__name__
    if callable(value) and hasattr(value, "__qualname__"):
        return "a function of the check's own"
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _snake(name: str) -> str:
    parts = "".join(
        f"_{c.lower()}" if c.isupper() and name[i - 1 : i].islower() else c for i, c in enumerate(name)
    )
    return parts.strip("_").lower()


def _dtype_of(array: Any) -> str:
    return dtype_name(array.dtype) if isinstance(array, mx.array) else str(array.dtype)


def parameter_names(call: Call) -> list[str]:
    """A name for each positional argument: the parameter's own where that is known."""
    try:
        parameters = list(inspect.signature(call.function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not names:  # a kernel: "axpby(x: mlx.core.array, y: mlx.core.array, alpha: float, ..."
        names = re.findall(r"(\w+): ", (call.function.__doc__ or "").partition("\n")[0].partition(") ->")[0])
    if names and (call.callee.of is not None or _is_constructor(call)) and names[0] in ("self", "cls"):
        names = names[1:]
    return [*names, *(f"array_{i}" for i in range(len(names), len(call.args)))]


# ---- files


def packed(arrays: Mapping[str, mx.array | np.ndarray]) -> dict[str, np.ndarray]:
    """What goes into the .npz: NumPy's own arrays, bfloat16 as its bits, lists of which are in `kinds`."""
    return {
        name: np.array(a.view(mx.uint16) if isinstance(a, mx.array) and a.dtype == mx.bfloat16 else a)
        for name, a in arrays.items()
    }


def kind_of(array: mx.array | np.ndarray) -> str:
    """ "mlx float32" or "numpy float64": how the array is to be made of what the file holds."""
    return f"{'mlx' if isinstance(array, mx.array) else 'numpy'} {_dtype_of(array)}"


def unpacked(stored: np.ndarray, kind: str) -> mx.array | np.ndarray:
    """The array again, bit for bit."""
    library, _, dtype = kind.partition(" ")
    if library == "numpy":
        return stored
    array = mx.array(stored)
    return array.view(mx.bfloat16) if dtype == BFLOAT16 else array


# ---- running


Lookup = Callable[[str, str], Any]  # (name, module) -> the solution's
Own = Callable[[str], Any]  # name -> what the check's module calls so


class Player:
    """Runs a story's steps with a solution."""

    def __init__(
        self, story: Mapping[str, Any], arrays: Mapping[str, Any], look_up: Lookup, own: Own
    ) -> None:
        self._steps = story["steps"]
        self._comparison = story["comparison"]
        self._look_up = look_up
        self._own = own
        self.given = dict(arrays)  # arrays and objects, by name
        for name, made in story["objects"].items():  # one that holds another stands after it
            cls = own(made["class"])
            self.given[name] = cls.__new__(cls)
            self.given[name].__dict__.update({k: self.value(v) for k, v in made["state"].items()})
        self.results: dict[str, Any] = {}

    def run(self, upto: int | None = None) -> Any:
        """Make the calls, all or the first `upto`; the last one's result."""
        result = None
        for step in self._steps[:upto]:
            function = self._callee(step["callee"])
            args = [self.value(a) for a in step["args"]]
            result = function(*args, **{k: self.value(v) for k, v in step["kwargs"].items()})
            self.results[step["result"]] = result
        return result

    def compare(self, check: Any, *judged: Any) -> None:
        """The comparison that failed, of `judged` or of what the steps made. Raises what `check` raises."""
        found = self._comparison
        if found is None:
            check.ratios.append(0.0)
            return
        method, kwargs = found["method"], {k: self.value(v) for k, v in found["kwargs"].items()}
        args = [self.value(a) for a in found["args"]]
        got = judged[0] if judged else self.value(found["got"])
        given = [args[0], got, *args[1:]] if method == "unchanged" else [got, *args]
        getattr(check, method)(*given, **kwargs)

    def judge(self, check: Any) -> None:
        """Run everything, and compare."""
        found = self._comparison
        if found is not None and found["method"] == "raises":
            self.run(len(self._steps) - 1)
            self.refuses(check, self._last_step)
            return
        self.run()
        self.compare(check)

    def refuses(self, check: Any, call: Callable[[], Any]) -> None:
        """The comparison of a call that must raise."""
        found = self._comparison
        kwargs = {k: self.value(v) for k, v in found["kwargs"].items()}
        check.raises(self.value(found["args"][0]), call, **kwargs)

    def _last_step(self) -> Any:
        step = self._steps[-1]
        args = [self.value(a) for a in step["args"]]
        return self._callee(step["callee"])(*args, **{k: self.value(v) for k, v in step["kwargs"].items()})

    def _callee(self, callee: Mapping[str, Any]) -> Callable[..., Any]:
        if "solution" in callee:
            return self._look_up(callee["solution"], callee["module"])
        of = self.value(callee["of"])
        return getattr(of, callee["method"]) if callee["method"] else of

    def value(self, encoded: Any) -> Any:
        if not isinstance(encoded, dict):
            return encoded
        if "result" in encoded:
            value = self.results[encoded["result"]]
            for key in encoded["path"]:
                value = value[key]
            return getattr(value, encoded["attribute"]) if "attribute" in encoded else value
        (kind, content), *_ = encoded.items()
        match kind:
            case "array" | "object":
                return self.given[content]
            case "own":
                return self._own(content)
            case "float":
                return float.fromhex(content) if "x" in content else float(content)
            case "dtype":
                return getattr(mx, content)
            case "slice":
                return slice(*map(self.value, content))
            case "solution":
                return self._look_up(content, encoded["module"])
            case "list":
                return [self.value(v) for v in content]
            case "tuple":
                return tuple(self.value(v) for v in content)
            case "set":
                return {self.value(v) for v in content}
            case "dict":
                return {self.value(k): self.value(v) for k, v in content}
            case "error":
                import builtins

                return getattr(builtins, content)
        raise ValueError(kind)


# ---- as Python


def source(story: Mapping[str, Any]) -> tuple[list[str], int]:
    """The lines of a program that make the story's calls, and which of them (from 0) is the last call.

    They use `case`, `a` (the arrays) and `solution`.
    """
    steps: Sequence[Mapping[str, Any]] = story["steps"]
    lines: list[str] = []
    earlier, last = steps[:-1], steps[-1]
    if len(earlier) > FOLDED:
        used = _used(last, story["comparison"], [s["result"] for s in earlier])
        left = ", ".join(used) or "_"
        names = ", ".join(f'"{n}"' for n in used)
        lines.append(f"{left} = case.before({names})  # the {len(earlier)} calls before it")
    else:
        for step in earlier:
            lines += _statement(step["result"], step)
    at = len(lines)
    found = story["comparison"]
    if found is not None and found["method"] == "raises":
        lines.append(f"case.refuses(lambda: {_call(last)})")
    else:
        lines += _statement(last["result"], last)
        lines.append(f"case.compare({_expression(found['got'])})" if found is not None else "case.passes()")
    return lines, at


def _used(step: Mapping[str, Any], comparison: Any, names: Sequence[str]) -> list[str]:
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "result" in value and value["result"] in names:
                found.append(value["result"])
            for item in value.values():
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    look({k: v for k, v in step.items() if k != "result"})
    look((comparison or {}).get("got"))
    return list(dict.fromkeys(found))


def _statement(name: str, step: Mapping[str, Any]) -> list[str]:
    line = f"{name} = {_call(step)}"
    if len(line) <= WIDTH:
        return [line]
    first, _, rest = line.partition("(")
    inside = textwrap.wrap(rest[:-1], WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return [f"{first}(", *(f"    {part}" for part in inside), ")"]


def _call(step: Mapping[str, Any]) -> str:
    callee = step["callee"]
    if "solution" in callee:
        function = f"solution.{callee['solution']}"
    else:
        function = _expression(callee["of"]) + (f".{callee['method']}" if callee["method"] else "")
    given = [_expression(a) for a in step["args"]]
    given += [f"{k}={_expression(v)}" for k, v in step["kwargs"].items()]
    return f"{function}({', '.join(given)})"


def _expression(encoded: Any) -> str:
    if not isinstance(encoded, dict):
        return repr(encoded)
    if "result" in encoded:
        text = encoded["result"] + "".join(f"[{key!r}]" for key in encoded["path"])
        return f"{text}.{encoded['attribute']}" if "attribute" in encoded else text
    (kind, content), *_ = encoded.items()
    match kind:
        case "array" | "object":
            return f"a.{content}"
        case "own":
            return f"case.own({content!r})"
        case "float":
            value = float.fromhex(content) if "x" in content else float(content)
            return repr(value) if np.isfinite(value) else f'float("{content}")'
        case "dtype":
            return f"mx.{content}"
        case "slice":
            start, stop, step = map(_expression, content)
            return f"slice({start}, {stop})" if step == "None" else f"slice({start}, {stop}, {step})"
        case "solution":
            return f"solution.{content}"
        case "list":
            return f"[{', '.join(map(_expression, content))}]"
        case "tuple":
            return f"({', '.join(map(_expression, content))}{',' * (len(content) == 1)})"
        case "set":
            return f"{{{', '.join(map(_expression, content))}}}" if content else "set()"
        case "dict":
            return "{" + ", ".join(f"{_expression(k)}: {_expression(v)}" for k, v in content) + "}"
    return repr(content)
