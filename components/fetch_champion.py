"""Component: the champion that a day's challenger starts from and is judged against."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def fetch_champion(day: str, config_json: str, champion: dsl.Output[dsl.Model]) -> None:  # type: ignore[valid-type]
    """Copy the champion's bundle; an empty folder where there was none before the day."""
    from datetime import date
    from pathlib import Path

    from storyrec.component import step_process

    with step_process("fetch_champion", config_json) as config:
        from storyrec.registry import fetch_champion

        if fetch_champion(config, day=date.fromisoformat(day), out=Path(champion.path)) is None:
            Path(champion.path).mkdir(parents=True)
