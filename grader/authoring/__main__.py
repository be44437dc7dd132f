"""`python -m tinyllm.grader.authoring`."""

from .cli import main

if __name__ == "__main__":
    main()
