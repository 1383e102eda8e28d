"""Component: a challenger that is not blessed changes nothing but the record."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def keep_champion(
    config_json: str,
    bundle: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    evaluation: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
    verdict: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
) -> None:
    """Record that the champion stays, and why."""
    from pathlib import Path

    from storyrec.component import judged_folder, step_process

    with step_process("keep_champion", config_json) as config:
        from storyrec.deploy import keep_champion

        with judged_folder(config, evaluation=Path(evaluation.path), verdict=Path(verdict.path)) as judged:
            keep_champion(config, bundle=Path(bundle.path), evaluation=judged, verdict=Path(verdict.path))
