"""Translates every photo of a source through a trained generator.

python -m jobs.translate --generator runs/seasons --source photos/summer --out translated --direction a2b
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclegan.config import TranslateSettings
from jobs.cli import parse, ray_session, run


def main(argv: Sequence[str]) -> int:
    """Translates, and says how many photos are ok and how many failed; or what that would take."""
    settings = parse(TranslateSettings, "translate", argv)
    from cyclegan.dry_run import dry_run
    from cyclegan.translation import already_done, prepare, translate

    job = prepare(settings)
    if settings.dry_run:
        with ray_session() as cluster:
            print("\n".join(dry_run(job, cluster).lines()))
        return 0
    if (result := already_done(job)) is None:
        with ray_session() as cluster:
            result = translate(job, cluster)
    summary = result.summary
    if result.stopped:
        print(f"stopped: {result.stopped}; give a larger share to go on from here", file=sys.stderr)
        return 3
    print(
        f"{summary['ok']} ok, {summary['failed']} failed of {summary['planned']}; rows in {result.out}/data, see {result.out}/report.html"
    )
    if result.failed_share > settings.max_failed_share:
        share = f"{result.failed_share:.1%} failed, more than --max-failed-share {settings.max_failed_share:g}"
        print(f"{share}; the reasons are in the rows with status 'failed' and, by type, in {result.out}/summary.json", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    run(main)
