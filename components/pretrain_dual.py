"""Component: pre-train the extractors of both domains. Paper: Sec. III-B."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def pretrain_dual(
    day: str,
    config_json: str,
    dataset: dsl.Input[dsl.Dataset],  # type: ignore[valid-type]
    champion: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    dual: dsl.Output[dsl.Model],  # type: ignore[valid-type]
) -> None:
    """Train DUAL on pairs, from the champion's weights where there is one."""
    from datetime import date
    from pathlib import Path

    from storyrec.component import folder_or_none, open_checkpoints, step_process

    with step_process("pretrain_dual", config_json) as config:
        from storyrec.pretrain import pretrain_dual

        pretrain_dual(
            config,
            dataset=Path(dataset.path),
            champion=folder_or_none(champion.path),
            checkpoints=open_checkpoints(config, day=date.fromisoformat(day)),
            out=Path(dual.path),
        )
