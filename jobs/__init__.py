"""Command lines of the project: `python -m jobs.NAME`."""
