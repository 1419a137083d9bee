"""Proves that a translation is whole: planned = ok + failed, and no file missing, doubled, damaged or foreign.

python -m jobs.verify translated --repair
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from cyclegan.config import TranslateSettings, VerifySettings
from cyclegan.errors import InputError
from jobs.cli import parse, ray_session, run

if TYPE_CHECKING:
    from cyclegan.plan import Plan
    from cyclegan.verification import Findings

_SHOWN = 50


def main(argv: Sequence[str]) -> int:
    """Verifies; 0 where all is whole, 1 where it is not."""
    settings = parse(VerifySettings, "verify", argv)
    from cyclegan import lease, plan, storage, verification

    out = storage.absolute(settings.out)
    if (planned := plan.open_plan(out)) is None:
        raise InputError(f"{out}: holds no plan.json; give an OUT of jobs.translate")
    with lease.hold(out) if settings.repair else nullcontext() as held:
        findings = _verify(planned)
        if findings.is_whole or held is None:
            return 0 if findings.is_whole else 1
        from cyclegan.translation import prepare, translate

        changes = {"out": out, "generator": settings.generator or planned.settings["generator"], "gpu": settings.gpu}
        job = prepare(TranslateSettings.model_validate(planned.settings | changes))  # before anything is deleted
        verification.repair(planned, findings, held.token)
    with ray_session() as cluster:
        translate(job, cluster)
    return 0 if _verify(planned).is_whole else 1


def _verify(planned: Plan) -> Findings:
    from cyclegan import progress, verification

    with progress.Line() as line:
        findings = verification.verify(planned, line.show)
    for problem in findings.problems[:_SHOWN]:
        print(problem, file=sys.stderr)
    found = f"{findings.ok} ok + {findings.failed} failed"
    print(f"planned {findings.planned} = {found}: whole" if findings.is_whole else f"planned {findings.planned}, found {found}: not whole")
    return findings


if __name__ == "__main__":
    run(main)
