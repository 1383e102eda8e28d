"""Component: challenger and champion on the same held-out impressions. Paper: Sec. IV-C."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate_model(
    config_json: str,
    dataset: dsl.Input[dsl.Dataset],  # type: ignore[valid-type]
    bundle: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    champion: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    evaluation: dsl.Output[dsl.Artifact],  # type: ignore[valid-type]
    metrics: dsl.Output[dsl.Metrics],  # type: ignore[valid-type]
    report: dsl.Output[dsl.HTML],  # type: ignore[valid-type]
) -> None:
    """Write the evaluation; its figures and its report are shown in the Pipelines UI."""
    import shutil
    from pathlib import Path

    from storyrec.component import flat_figures, folder_or_none, step_process

    with step_process("evaluate_model", config_json) as config:
        from storyrec.evaluate import evaluate_model

        evaluate_model(
            config,
            dataset=Path(dataset.path),
            bundle=Path(bundle.path),
            champion=folder_or_none(champion.path),
            out=Path(evaluation.path),
        )
        for name, value in flat_figures(Path(evaluation.path)).items():
            metrics.log_metric(name, value)
        shutil.copyfile(Path(evaluation.path) / "report.html", report.path)
