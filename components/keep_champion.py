"""Component: a challenger that is not blessed changes nothing but the record."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def keep_champion(
    config_json: str,
    evaluation: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
    verdict: dsl.Input[dsl.Artifact],  # type: ignore[valid-type]
) -> None:
    """Record that the champion stays, and why."""
    from pathlib import Path

    from storyrec.component import record_judgement, step_process

    with step_process("keep_champion", config_json) as config:
        from storyrec.deploy import keep_champion

        record_judgement(config, evaluation=Path(evaluation.path), verdict=Path(verdict.path))
        keep_champion(config, evaluation=Path(evaluation.path), verdict=Path(verdict.path))
