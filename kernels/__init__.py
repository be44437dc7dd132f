"""Turns a tree's C++ and GPU sources into callables. Knows no solution."""
