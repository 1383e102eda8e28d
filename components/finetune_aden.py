"""Component: fine-tune the click-through network. Paper: Sec. III-C."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def finetune_aden(
    day: str,
    config_json: str,
    dataset: dsl.Input[dsl.Dataset],  # type: ignore[valid-type]
    dual: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    champion: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    aden: dsl.Output[dsl.Model],  # type: ignore[valid-type]
) -> None:
    """Train ADEN on impressions, from DUAL's extractors."""
    from datetime import date
    from pathlib import Path

    from storyrec.component import folder_or_none, open_checkpoints, step_process

    with step_process("finetune_aden", config_json) as config:
        from storyrec.finetune import finetune_aden

        finetune_aden(
            config,
            dataset=Path(dataset.path),
            dual=Path(dual.path),
            champion=folder_or_none(champion.path),
            checkpoints=open_checkpoints(config, day=date.fromisoformat(day)),
            out=Path(aden.path),
        )
