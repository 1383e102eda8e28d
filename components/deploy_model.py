"""Component: a blessed bundle becomes the champion."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def deploy_model(
    config_json: str,
    bundle: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    evaluation: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
    verdict: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
) -> None:
    """Push the bundle and switch the pointer; the outcome is recorded last."""
    from pathlib import Path

    from storyrec.component import judged_folder, step_process

    with step_process("deploy_model", config_json) as config:
        from storyrec.deploy import deploy_model

        with judged_folder(config, evaluation=Path(evaluation.path), verdict=Path(verdict.path)) as judged:
            deploy_model(config, bundle=Path(bundle.path), evaluation=judged, verdict=Path(verdict.path))
