"""The tools of whoever writes a day: generated stubs, import rules, spec checks, proof that the tests see."""
