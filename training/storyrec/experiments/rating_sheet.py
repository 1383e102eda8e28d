"""The rating sheet of the subjective study: products, and the story that either extractor finds for each.

Paper: Sec. IV-G, Table VIII. Titles alone are shown: the logs hold vectors of covers, no pictures.
Suffixes: N items of a catalog with the padding row, M matching width.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError
from storyrec.experiments.fit import WEIGHTS, pretrained_folder, run_folder
from storyrec.experiments.methods import ADAPT, WITHOUT_DUAL
from storyrec.experiments.prepare import prepared_dataset
from storyrec.experiments.run import EXPERIMENT
from storyrec.export import item_vectors, load_trained_extractors
from storyrec.match import nearest_stories
from storyrec.pretrain import DUAL_WEIGHTS, build_extractors, raw_items
from storyrec.storage import write_file

SHEET, KEY = "sheet.html", "key.json"
WITHOUT, WITH = "w/o DUAL", "w. DUAL"
QUESTIONS = {
    "matching": "How well does the story match the product?",
    "interesting": "How interesting is the story itself?",
    "purchasing": "How probable is it that you buy the product?",
}
SIDES = ("A", "B")
NUM_PRODUCTS = 100
NUM_PICKED = 5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MatchVectors:
    """What one extractor compares by, row by row of the two catalogs.

    Attributes:
        stories_NM, products_NM: title and cover side by side; row 0 is padding.
    """

    stories_NM: Floats
    products_NM: Floats


def write_rating_sheet(root: Path, *, config: Config, seed: int, out: Path) -> None:
    """Make the sheet from the extractors of ADAPT without DUAL, fine-tuned, and those that DUAL pre-trained.

    Args:
        root: folder of the experiments, with the runs of Table VI.
        config: the settings that its runs do not set.
        seed: whose extractors, and of the draw.
        out: folder to write; see `make_rating_sheet`.

    Raises:
        DataError: a run is missing.
        ModelError: its weights are damaged.
    """
    data = prepared_dataset(root)
    snapshots = (
        run_folder(root, WITHOUT_DUAL.name, seed=seed) / WEIGHTS,
        pretrained_folder(root, ADAPT.pretraining or "", seed=seed) / DUAL_WEIGHTS,
    )
    for path in (root / EXPERIMENT, *snapshots):
        if not path.exists():
            raise DataError(
                f"there is no {path.name} of seed {seed}",
                expected="finished runs of Table VI",
                where=str(path),
                remedy="run `storyrec experiment table6 DATA` first, into the same folder and with enough seeds",
            )
    facts = json.loads((root / EXPERIMENT).read_bytes())
    settings = update_config(config, {section: facts[section] for section in ("features", "model")})
    without_dual, with_dual = (read_vectors(path, config=settings, data=data) for path in snapshots)
    make_rating_sheet(data, without_dual=without_dual, with_dual=with_dual, seed=seed, out=out)


def read_vectors(weights: Path, *, config: Config, data: Dataset) -> MatchVectors:
    """Matching vectors of all items by the extractors of a snapshot.

    Args:
        weights: a .safetensors file of DUAL or of a click model.
        config: sections `model` and `features` that it was trained with.
        data: the dataset that it was trained on.

    Raises:
        ModelError: the file is missing, damaged or of other shapes.
    """
    extractors = load_trained_extractors(build_extractors(config, num_words=data.vocabulary.size), weights)
    stories_NM, products_NM = (
        item_vectors(extractors, items, pick=lambda features: features.match_NM)
        for items in raw_items(data, max_words=config.features.max_title_words)
    )
    return MatchVectors(stories_NM, products_NM)


def make_rating_sheet(
    data: Dataset,
    *,
    without_dual: MatchVectors,
    with_dual: MatchVectors,
    seed: int,
    out: Path,
    num_products: int = NUM_PRODUCTS,
) -> None:
    """Write sheet.html for volunteers and key.json, which tells which story is whose.

    Args:
        data: whose products are drawn and whose stories are searched.
        without_dual, with_dual: matching vectors of the two extractors.
        seed: decides which products, and by a coin for each product which story stands first.
        out: folder to write; a key that is there must be the same.
        num_products: how many, of those with a title; all where there are fewer.

    Raises:
        DataError: there is nothing to show, or the folder holds the key of another sheet.
    """
    generator = np.random.default_rng(seed)
    titled = [row for row in range(1, len(data.products)) if data.products.titles[row]]
    if not titled or len(data.stories) < 2:
        raise DataError(
            f"there are {len(titled)} products with a title and {len(data.stories) - 1} stories",
            expected="at least one of each",
            where="the dataset",
            remedy="build a dataset of logs with titles",
        )
    rows = generator.choice(titled, min(num_products, len(titled)), replace=False)
    found = {
        method: nearest_stories(vectors.products_NM[rows], vectors.stories_NM[1:], top_k=1)[0][:, 0] + 1
        for method, vectors in ((WITHOUT, without_dual), (WITH, with_dual))
    }
    products = [
        {
            "product_id": int(data.products.item_ids_N[row]),
            "title": data.products.titles[row],
            "stories": [
                {
                    "method": method,
                    "story_id": int(data.stories.item_ids_N[found[method][place]]),
                    "title": data.stories.titles[found[method][place]],
                }
                for method in ((WITH, WITHOUT) if dual_first else (WITHOUT, WITH))
            ],
        }
        for place, (row, dual_first) in enumerate(zip(rows, generator.random(len(rows)) < 0.5, strict=True))
    ]
    content: dict[str, Any] = {
        "dataset": data.digest,
        "seed": seed,
        "num_picked": min(NUM_PICKED, len(products)),
        "products": products,
    }
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    _refuse_other_key(out / KEY, name)
    write_file(out / KEY, json.dumps({"sheet": name, **content}, indent=1, ensure_ascii=False).encode())
    write_file(out / SHEET, render_sheet(name, content).encode())


def render_sheet(name: str, content: Mapping[str, Any]) -> str:
    """The page for volunteers: self-contained, and without a word of which story is whose."""
    blinded = [
        {
            "id": product["product_id"],
            "title": product["title"],
            "stories": [story["title"] or f"story {story['story_id']}" for story in product["stories"]],
        }
        for product in content["products"]
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "rating_sheet.html.j2").read_text("utf-8"))
    return template.render(
        sheet={
            "name": name,
            "numPicked": content["num_picked"],
            "sides": SIDES,
            "questions": list(QUESTIONS.items()),
            "products": blinded,
        }
    )


def _refuse_other_key(path: Path, name: str) -> None:
    """A key that is lost cannot be made again from filled sheets."""
    if not path.exists():
        return
    try:
        there = json.loads(path.read_bytes()).get("sheet")
    except (OSError, ValueError):
        there = None
    if there != name:
        raise DataError(
            f"the folder holds the key of another sheet, {there}",
            expected=f"no key, or that of this sheet, {name}",
            where=str(path),
            remedy="name another folder, or remove this one when its ratings are no longer needed",
        )
