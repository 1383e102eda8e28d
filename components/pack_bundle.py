"""Component: everything that serving needs in one folder."""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def pack_bundle(
    config_json: str,
    dataset: dsl.Input[dsl.Dataset],  # type: ignore[valid-type]
    dual: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    aden: dsl.Input[dsl.Model],  # type: ignore[valid-type]
    bundle: dsl.Output[dsl.Model],  # type: ignore[valid-type]
) -> None:
    """Export the ranker, precompute the item table, seal the folder."""
    from pathlib import Path

    from storyrec.component import step_process

    with step_process("pack_bundle", config_json) as config:
        from storyrec.pack import pack_bundle

        pack_bundle(
            config, dataset=Path(dataset.path), dual=Path(dual.path), aden=Path(aden.path), out=Path(bundle.path)
        )
