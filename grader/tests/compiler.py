"""Whether this machine can compile C++, for the tests that do."""

from __future__ import annotations

import pytest

from tinyllm.kernels import build


def lack_of_a_compiler() -> str:
    """Why nothing can be compiled here; empty where it can."""
    try:
        build.find_compiler()
    except build.NoCompiler as error:
        return str(error)
    return ""


LACK = lack_of_a_compiler()
needs_compiler = pytest.mark.skipif(bool(LACK), reason=LACK)
