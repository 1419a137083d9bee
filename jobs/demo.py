"""Draws two domains, trains a CycleGAN on them, translates, evaluates against the truth, and shows the result on a page.

python -m jobs.demo --out demo
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclegan.config import DemoSettings
from jobs.cli import parse, ray_session, run


def main(argv: Sequence[str]) -> int:
    """Runs the demo; fails where the translated pictures are not far nearer to the truth than the untranslated ones."""
    settings = parse(DemoSettings, "demo", argv)
    from cyclegan import demo, evaluation, plan, training, translation, translation_report

    folders = demo.draw_domains(settings.out)
    with ray_session() as cluster:
        training.train(training.prepare(demo.train_settings(folders, settings.steps)), cluster)
        translated_all = translation.translate(translation.prepare(demo.translate_settings(folders)), cluster)
        translated, untranslated = (
            evaluation.evaluate(evaluation.prepare(demo.evaluate_settings(folders, generated)))
            for generated in (folders.translated, folders.test_a)
        )
    share = translated.mean_absolute_error / untranslated.mean_absolute_error
    facts = {
        "error of the untranslated images (mean absolute, of 255)": f"{untranslated.mean_absolute_error:.1f}",
        "error of the translations": f"{translated.mean_absolute_error:.1f}",
        "share": f"{share:.3f} (at most {demo.GOAL} is asked)",
        "PSNR, SSIM of the translations": f"{translated.psnr:.1f} dB, {translated.ssim:.3f}",
    }
    planned = plan.open_plan(folders.translated)
    assert planned
    pairs = [(pair.name, *pair.shown()) for pair in translation_report.sample_pairs(planned, demo.TEST_IMAGES)]
    page = demo.write_report(folders, pairs, facts)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), page, sep="\n")
    if share > demo.GOAL or translated_all.summary["ok"] != demo.TEST_IMAGES:
        print("the demo failed: the translations are not near enough to the truth", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
