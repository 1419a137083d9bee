"""Measures translated images against their true counterparts.

python -m jobs.evaluate --generated translated --real photos/winter --paired
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from cyclegan.config import EvaluateSettings
from jobs.cli import parse, ray_session, run


def main(argv: Sequence[str]) -> int:
    """Evaluates and prints the result as JSON."""
    settings = parse(EvaluateSettings, "evaluate", argv)
    from cyclegan.evaluation import evaluate, prepare

    job = prepare(settings)
    with ray_session():
        result = evaluate(job)
    print(json.dumps(asdict(result), indent=2))
    return 0


if __name__ == "__main__":
    run(main)
