"""The errors the program reports in its own words, each with the exit code it ends in."""

from __future__ import annotations


class CourseError(Exception):
    """Something the learner or author is told about without a traceback.

    `next_step` is what to type or do next, when there is something.
    """

    exit_code = 3

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class UsageError(CourseError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class SpecError(CourseError):
    """A checkpoint's files are wrong; the message names file and key."""


class EnvironmentFault(CourseError):
    """This machine or installation is at fault, not the learner's code."""
