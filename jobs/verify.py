"""Proves that a translation is whole: planned = ok + failed, and no file missing, doubled, damaged or foreign.

python -m jobs.verify translated --repair
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclegan.config import TranslateSettings, VerifySettings
from cyclegan.errors import InputError
from jobs.cli import parse, ray_session, run

if TYPE_CHECKING:
    from cyclegan.verification import Findings

_SHOWN = 50


def main(argv: Sequence[str]) -> int:
    """Verifies; 0 where all is whole, 1 where it is not."""
    settings = parse(VerifySettings, "verify", argv)
    from cyclegan import lease, plan, storage, verification

    out = storage.absolute(settings.out)
    planned = plan.open_plan(out)
    if planned is None:
        raise InputError(f"{out}: holds no plan.json; give an OUT of jobs.translate")
    findings = verification.verify(planned)
    _say(findings)
    if findings.is_whole or not settings.repair:
        return 0 if findings.is_whole else 1
    from cyclegan.translation import prepare, translate

    changes = {"out": out, "generator": settings.generator or planned.settings["generator"], "gpu": settings.gpu}
    job = prepare(TranslateSettings.model_validate(planned.settings | changes))  # before anything is deleted
    with lease.hold(out) as held:
        verification.repair(planned, findings, held.token)
    with ray_session() as cluster:
        translate(job, cluster)
    findings = verification.verify(planned)
    _say(findings)
    return 0 if findings.is_whole else 1


def _say(findings: Findings) -> None:
    for problem in findings.problems[:_SHOWN]:
        print(problem, file=sys.stderr)
    if findings.is_whole:
        print(f"planned {findings.planned} = {findings.ok} ok + {findings.failed} failed: whole")
    else:
        print(f"planned {findings.planned}, {findings.ok} ok, {findings.failed} failed, {len(findings.problems)} problems: not whole")


if __name__ == "__main__":
    run(main)
