"""Measurements of the course's own tools: `python -P -m tinyllm.grader.bench`."""
