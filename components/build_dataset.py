"""Component: validated logs become the arrays that training and evaluation read."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def build_dataset(day: str, config_json: str, dataset: dsl.Output[dsl.Dataset]) -> None:  # type: ignore[valid-type]
    """Write the dataset of a day."""
    from datetime import date
    from pathlib import Path

    from storyrec.component import step_process

    with step_process("build_dataset", config_json) as config:
        from storyrec.data.build import build_dataset

        build_dataset(config, day=date.fromisoformat(day), out=Path(dataset.path))
