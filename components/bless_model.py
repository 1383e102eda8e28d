"""Component: the gate's verdict, with its reasons."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def bless_model(
    config_json: str,
    evaluation: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
    verdict: dsl.Output[dsl.Artifact],  # type: ignore[valid-type]
    reasons: dsl.Output[dsl.Markdown],  # type: ignore[valid-type]
    report: dsl.Output[dsl.HTML],  # type: ignore[valid-type]
) -> None:
    """Write the verdict; its reasons, and the report that holds them, are shown in the Pipelines UI."""
    import shutil
    from pathlib import Path

    from storyrec.component import judged_folder, step_process, verdict_markdown

    with step_process("bless_model", config_json) as config:
        from storyrec.gate.bless import bless_model

        bless_model(config, evaluation=Path(evaluation.path), out=Path(verdict.path))
        Path(reasons.path).write_text(verdict_markdown(Path(verdict.path)), encoding="utf-8")
        with judged_folder(config, evaluation=Path(evaluation.path), verdict=Path(verdict.path)) as judged:
            shutil.copyfile(judged / "report.html", report.path)
