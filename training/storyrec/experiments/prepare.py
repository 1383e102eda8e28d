"""From a data root of the log contract to the dataset that experiments run on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from storyrec.config import Config, update_config
from storyrec.data.build import build_dataset
from storyrec.data.catalog import Catalog
from storyrec.data.dataset import Dataset
from storyrec.errors import ConfigError, DataError, MissingPartition
from storyrec.experiments.claims import claim
from storyrec.features.embed import embed_covers
from storyrec.logs.days import suggest_days
from storyrec.logs.partitions import list_days
from storyrec.logs.simulate import MARKER
from storyrec.logs.validate import validate_logs
from storyrec.storage import open_storage

DATA, DATASET = "data.json", "dataset"
COVER_BLOCK = 65_536
HALF_EXPONENT = 0x7C00  # all its bits set: infinity or not a number


@dataclass(frozen=True)
class Prepared:
    """What an experiment runs on.

    Attributes:
        config: the settings with the locations of this data.
        dataset: folder of the dataset.
    """

    config: Config
    dataset: Path


def prepare(config: Config, *, data: Path, root: Path, day: date | None = None) -> Prepared:
    """Validate the logs of a data root and build the dataset of its last whole day, unless that was done before.

    Args:
        config: settings; locations are taken from `data` and `root`. The truth of a simulated marketplace is
            looked for in the folder `truth` beside the logs.
        data: data root of the log contract.
        root: folder of the experiments: `work/`, `dataset/` and `data.json` are written.
        day: the last held-out day; None: the last one that is not thin.

    Raises:
        MissingPartition: there are no logs, or too few days.
        ConfigError: the folder was made for other logs.
        DataError: a cover is not finite, or there is nothing to learn from.
    """
    truth = data.parent / "truth"
    config = update_config(
        config,
        {
            "locations": {
                "logs": str(data),
                "truth": str(truth) if (truth / MARKER).is_file() else "",
                "work": str(root / "work"),
            }
        },
    )
    logs = open_storage(str(data), s3_endpoint=config.locations.s3_endpoint)
    if not list_days(logs, "impressions"):
        raise MissingPartition(
            "there are no impressions at the place of the data",
            expected="a data root: impressions/dt=YYYY-MM-DD/*.parquet and the other tables",
            where=str(data),
            remedy="name another folder, or make one with `storyrec simulate` or `storyrec import`",
        )
    day = day or suggest_days(logs)[1]
    facts = {"logs": str(data.resolve()), "day": day.isoformat(), "windows": config.windows.model_dump(mode="json")}
    claim_data(root, facts)
    dataset = root / DATASET
    if dataset.exists():
        return Prepared(config, dataset)
    validate_logs(config, day=day)
    embed_covers(config, day=day)
    draft = root / "work" / DATASET
    built = build_dataset(config, day=day, out=draft)
    for name, catalog in (("stories", built.stories), ("products", built.products)):
        check_covers(catalog, name=name)
    draft.rename(dataset)
    return Prepared(config, dataset)


def claim_data(root: Path, facts: Mapping[str, object]) -> None:
    """Write down what data the folder is for, or check that it is the same.

    This comes before anything else is written, so that logs of two kinds never meet in one folder.

    Raises:
        ConfigError: it is not.
    """
    differing = claim(root / DATA, facts)
    if differing:
        raise ConfigError(
            f"the folder holds experiments on other data: {'; '.join(differing)}",
            expected="experiments on this data",
            where=str(root),
            remedy="name another folder with --out",
        )


def prepared_dataset(root: Path) -> Dataset:
    """The dataset that the experiments of a folder ran on.

    Raises:
        DataError: nothing was run there.
    """
    if not (root / DATASET).exists():
        raise DataError(
            "there are no experiments in this folder",
            expected="finished runs of Table VI",
            where=str(root),
            remedy="run `storyrec experiment table6 DATA` first, with the same --out",
        )
    return Dataset.load(root / DATASET)


def check_covers(catalog: Catalog, *, name: str) -> None:
    """Refuse covers with a value that is not finite.

    Raises:
        DataError: naming the first such item.
    """
    covers_NV = catalog.visual_raw_NV
    for start in range(0, len(covers_NV), COVER_BLOCK):
        bits = np.ascontiguousarray(covers_NV[start : start + COVER_BLOCK]).view(np.uint16)
        bad = np.flatnonzero(((bits & HALF_EXPONENT) == HALF_EXPONENT).any(axis=1))
        if len(bad):
            raise DataError(
                f"item {catalog.item_ids_N[start + bad[0]]} has a cover with a value that is not finite",
                expected="512 finite values",
                where=f"the catalog of {name}",
                remedy="correct the covers in the logs, and remove the experiments' folder",
            )


def describe(data: Dataset) -> dict[str, object]:
    """What a report says of the data: the day, the windows and the counts, as they are when read from a file."""
    summary = json.loads(json.dumps(data.summary()))
    return {name: summary[name] for name in ("day", "windows", "counts", "digest")}
