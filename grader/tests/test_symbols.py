"""Finding symbols in whole and in broken source files."""

from __future__ import annotations

import ast
import textwrap
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.grader.symbols import is_stub, regions, segment, split_lines

MODULE = '''\
"""Rotary positions."""

from functools import partial, wraps

SCALE = 3
LIMIT: int = 4


# Two lines that explain
# what follows.
@partial(
    wraps,
    print,
)
@staticmethod
def rotate(x,
           y=(1,
              2),
):
    """Rotate x."""
    text = """
def rotate(not this one):
"""
    return x
    # a last word

    # and another


# a comment of its own

class RoPE:
    """The class."""

    def __init__(self, dims):
        self.dims = dims

    # why it is called
    async def __call__(self, x):
        def inner():
            return x

        return inner()

    class Nested:
        def deep(self): pass


if SCALE:
    def chosen(): return 1
else:
    def chosen(): return 2

try:
    import fast
except ImportError:
    def fallback():
        pass
finally:
    def at_last():
        pass


def again():
    return "old"


def again():
    return "new"
'''


def text_of(name: str, source: str = MODULE) -> str:
    found = segment(source, name)
    assert found is not None
    assert found.text == "\n".join(split_lines(source)[found.start - 1 : found.end])
    assert found.lines == found.text.split("\n")
    return found.text


def without(source: str, mark: str = "SCALE = 3\n") -> str:
    """The same module, broken at its top."""
    return source.replace(mark, "SCALE = (3\n")


@pytest.mark.parametrize("source", [MODULE, without(MODULE)], ids=["parses", "broken"])
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("rotate", "# Two lines that explain", "    # and another"),
        ("RoPE", "class RoPE:", "        def deep(self): pass"),
        ("RoPE.__init__", "    def __init__(self, dims):", "        self.dims = dims"),
        ("RoPE.__call__", "    # why it is called", "        return inner()"),
        ("RoPE.__call__.inner", "        def inner():", "            return x"),
        ("RoPE.Nested.deep", "        def deep(self): pass", "        def deep(self): pass"),
        ("chosen", "    def chosen(): return 2", "    def chosen(): return 2"),
        ("fallback", "    def fallback():", "        pass"),
        ("at_last", "    def at_last():", "        pass"),
        ("again", "def again():", '    return "new"'),
    ],
)
def test_where_a_symbol_begins_and_ends(source, name, first, last):
    lines = text_of(name, source).split("\n")
    assert (lines[0], lines[-1]) == (first, last)


def test_constants():
    assert text_of("SCALE") == "SCALE = 3"
    assert text_of("LIMIT") == "LIMIT: int = 4"
    assert segment(MODULE, "SCALE.x") is None


@pytest.mark.parametrize("source", [MODULE, without(MODULE)], ids=["parses", "broken"])
@pytest.mark.parametrize(
    "name", ["missing", "RoPE.missing", "deep", "__call__", "rotate.__call__", "RoP", "", "."]
)
def test_what_is_not_there(source, name):
    assert segment(source, name) is None


def test_a_comment_after_a_blank_line_belongs_to_nobody():
    assert not text_of("RoPE").startswith("#")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_endings_and_byte_order_marks(ending):
    source = "\ufeff" + "def a():\n    return 1\n\ndef b():\n    return 2".replace("\n", ending)
    assert text_of("b", source) == "def b():\n    return 2"
    assert segment(source, "b").start == 4


def test_other_separators_do_not_end_lines():
    source = 'x = "\x0c \x1c \u2028 \x85"\n\x0cdef a():\n    return "\u2029"\n'
    assert segment(source, "a").start == 2
    assert text_of("a", source).endswith('"\u2029"')


def test_invalid_escapes_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert segment('def a():\n    return "\\d"\n', "a")


@pytest.mark.parametrize(
    "broken",
    [
        "def a(x:\n    return x\n\n\ndef b():\n    return 1\n",
        "def a(x):\n    return x +\n\n\ndef b():\n    return 1\n",
        "def a(x):\n    if x\n        return x\n\n\ndef b():\n    return 1\n",
        "def a(x):\nreturn x\n\n\ndef b():\n    return 1\n",
        'def a(x):\n    """never closed\n    return x\n\n\ndef b():\n    return 1\n',
        "def a(x):\n    return x\n\n\ndef b():\n    return 1\n\n\n<<<<<<< HEAD\n",
        "def a(x):\n\treturn x\n        return y\n\n\ndef b():\n    return 1\n",
        "def a(x):\n    return '\0'\n\n\ndef b():\n    return 1\n",
    ],
)
def test_broken_files(broken):
    a, b = segment(broken, "a"), segment(broken, "b")
    assert a.text.startswith("def a(x")
    assert "def b" not in a.text
    assert b.text == "def b():\n    return 1"


def test_a_broken_method_with_signature_and_strings_over_lines():
    source = textwrap.dedent(
        '''\
        class A:
            @cached  # a comment with """ in it
            # and one more
            def call(
                self,
            ) -> (
                int
            ):
                """Words

        at the margin, with a # sign
                """
                x = """one line"""; y = \'\'\'another\'\'\'
                return (x
                # last words

            def other(self):
                pass
        '''
    )
    lines = text_of("A.call", source).split("\n")
    assert lines[0].strip() == '@cached  # a comment with """ in it'
    assert lines[-1].strip() == "# last words"
    assert text_of("A.other", source) == "    def other(self):\n        pass"
    assert text_of("A", source).endswith("        pass")


def test_a_comment_at_the_margin_does_not_end_a_broken_function():
    source = "def a(x):\n    y = x\n# looking into this\n    return (y\n\n# about b\ndef b():\n    return 1\n"
    assert text_of("a", source) == "def a(x):\n    y = x\n# looking into this\n    return (y"
    assert text_of("b", source) == "# about b\ndef b():\n    return 1"


def test_deep_nesting_is_searched_by_indentation():
    source = "def a():\n    return 1\n\nx = " + "(" * 5000 + ")" * 5000 + "\n"
    assert text_of("a", source) == "def a():\n    return 1"


@given(st.text(alphabet="ab \t\n\r\x0c#\"'()@:=", max_size=80), st.text(max_size=80))
def test_any_text_is_searched_without_errors(odd, text):
    for source in (odd, text, odd + "\ndef f():\n" + text, "class C:\n  def f(self):\n" + odd):
        for name in ("f", "C.f", "C"):
            found = segment(source, name)
            if found is not None:
                lines = split_lines(source)
                assert 1 <= found.start <= found.end <= len(lines)
                assert any("f" in line or "C" in line for line in found.lines)
        is_stub(source)
        regions(source, 1)


@given(st.lists(st.sampled_from(["f", "g", "h"]), min_size=1, max_size=6))
def test_both_ways_to_search_agree(names):
    source = "\n\n".join(f"# about {n}{i}\ndef {n}(x):\n    return {i}" for i, n in enumerate(names)) + "\n"
    for name in set(names):
        assert segment(source, name) == segment(source + "\n\n)", name)


# ---- stubs


@pytest.mark.parametrize(
    ("text", "stub"),
    [
        ('def f(x):\n    """Words."""\n    raise NotImplementedError("day 1.1, task 1: f")', True),
        ("def f(x):\n    raise NotImplementedError", True),
        ('    # why\n    @wraps(f)\n    async def f(self):\n        raise NotImplementedError("...")', True),
        ("\tdef f(self):\n\t\traise NotImplementedError()", True),
        ('def f(x):\n    """Words\nat the margin."""\n    raise NotImplementedError("...")', True),
        (
            "class A:\n    def f(): raise NotImplementedError()\n    def g(): raise NotImplementedError()",
            True,
        ),
        ("class A:\n    def f(self): raise NotImplementedError\n    def g(self): return 1", False),
        ("class A:\n    x = 1", False),
        ("def f(x):\n    y = x\n    raise NotImplementedError('...')", False),
        ("def f(x):\n    raise ValueError('...')", False),
        ("def f(x):\n    raise", False),
        ("def f(x):\n    raise errors.NotImplementedError", False),
        ('def f(x):\n    """Words."""', False),
        ("def f(x):\n    return x", False),
        ("def f(x:\n    raise NotImplementedError", False),
        ("", False),
    ],
)
def test_stubs(text, stub):
    assert is_stub(text) is stub


def test_a_stub_cut_out_of_a_file_is_a_stub():
    source = 'class A:\n    """A."""\n\n    def f(self):\n        raise NotImplementedError("x")\n'
    assert is_stub(text_of("A.f", source))
    assert ast.parse(source)


# ---- marked regions

KERNEL = """\
#include <x>
// [task 1
int one() { return 1; }
// task 1]
int between() { return 0; }
    //[ task 2: the inner loop
    two();
    //task 2 ]
// [task 1
int more() { return 11; }
// task 1]
// [task 12
twelve();
"""


def test_regions():
    assert [(r.start, r.end) for r in regions(KERNEL, 1)] == [(2, 4), (9, 11)]
    assert regions(KERNEL, 1)[0].text == "// [task 1\nint one() { return 1; }\n// task 1]"
    assert [(r.start, r.end) for r in regions(KERNEL, 2)] == [(6, 8)]
    assert regions(KERNEL, 3) == []


def test_regions_whose_end_is_missing():
    assert regions(KERNEL, 12)[0].text == "// [task 12\ntwelve();\n"
    source = "// [task 1\none();\n// task 2]\n// [task 2\ntwo();\n// task 2]\n"
    assert regions(source, 1)[0].text == "// [task 1\none();\n// task 2]"
    assert regions(source, 2)[0].text == "// [task 2\ntwo();\n// task 2]"
