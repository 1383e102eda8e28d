"""Component: the verdict as the one plain value that the pipeline branches on.

Alone on purpose: the local runner silently takes neither branch of a condition on one of several outputs.
"""

from kfp import dsl

from components.image import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def read_verdict(verdict: dsl.Input[dsl.Artifact]) -> bool:  # type: ignore[valid-type]
    """Whether the challenger is blessed; anything but a clear yes is a no."""
    from pathlib import Path

    from storyrec.component import is_blessed

    return is_blessed(Path(verdict.path))
