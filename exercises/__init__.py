"""The complete course: every module of `exercises`, finished."""
