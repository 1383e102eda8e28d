"""The bundle: what goes in, what it scores, and that it notices every changed byte."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from storyrec.bundle import Bundle
from storyrec.data.batches import Batch, make_batch
from storyrec.data.catalog import Catalog
from storyrec.data.instances import Instances
from storyrec.errors import ModelError, StorageError
from storyrec.finetune import build_aden
from storyrec.pack import pack_bundle
from storyrec.pretrain import raw_items
from storyrec.schema import Domain
from storyrec.warmstart import load_weights
from trained import World, make_bundle, make_world, write_models


def batch_of(world: World, instances: Instances, *, num: int = 200) -> Batch:
    data = world.data
    return make_batch(
        data,
        instances,
        np.arange(min(num, len(instances))),
        sequence_length=world.config.features.sequence_length,
        block_hours=data.windows.block_hours,
        num_time_blocks=world.config.model.num_time_blocks,
    )


def torch_scores(world: World, packed: Path, batch: Batch) -> np.ndarray:
    data = world.data
    model = build_aden(world.config, num_words=data.vocabulary.size)
    model.load_state_dict(load_weights(packed / "aden.safetensors"))
    stories, products = raw_items(data, max_words=world.config.features.max_title_words)
    with torch.no_grad():
        logits_B = model.eval()(batch, stories=stories, products=products)
        return torch.sigmoid(logits_B + logit_offset(packed)).numpy()


def logit_offset(packed: Path) -> float:
    return float(json.loads((packed / "training.json").read_bytes())["logit_offset"])


def test_the_layout_is_the_documented_one(packed: Path) -> None:
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    items = {f"items/{d}_{p}.npy" for d in ("story", "product") for p in ("ids", "vectors", "match_vectors")}
    assert names == items | {
        "manifest.json",
        "ranker.onnx",
        "ranker_of_one_user.onnx",
        "aden.safetensors",
        "dual.safetensors",
        "tokenizer.json",
        "config.toml",
        "training.json",
    }


def test_the_settings_say_what_the_windows_were_and_name_no_place(world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    windows = world.data.windows
    assert bundle.config.windows.history_days == windows.history_days
    assert bundle.config.windows.block_hours == windows.block_hours
    assert bundle.config.model == world.config.model
    assert "locations" not in (packed / "config.toml").read_text()
    assert bundle.day == world.data.day


@pytest.mark.parametrize("part", ["train", "validation", "holdout"])
def test_served_scores_are_torchs(world: World, packed: Path, part: str) -> None:
    bundle = Bundle.load(packed)
    batch = batch_of(world, getattr(world.data, part))
    served_B = bundle.score(batch, story_vectors=bundle.stories.vectors_ND, product_vectors=bundle.products.vectors_ND)
    expected_B = torch_scores(world, packed, batch)
    np.testing.assert_allclose(served_B, expected_B, atol=1e-5)
    assert expected_B.std() > 0.01  # scores that are all alike would prove nothing


def test_the_recorded_difference_is_the_one_that_is_there(world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    assert bundle.onnx_difference is not None
    assert 0 < bundle.onnx_difference < 1e-5
    largest = 0.0
    for instances in (world.data.validation, world.data.holdout):
        batch = batch_of(world, instances, num=len(instances))
        served_B = bundle.score(
            batch, story_vectors=bundle.stories.vectors_ND, product_vectors=bundle.products.vectors_ND
        )
        largest = max(largest, float(np.abs(served_B - torch_scores(world, packed, batch)).max()))
    assert bundle.onnx_difference <= largest + 1e-7


def test_probabilities_meet_the_click_rate_of_the_validation_impressions(world: World, packed: Path) -> None:
    bundle, data = Bundle.load(packed), world.data
    batch = make_batch(
        data,
        data.validation,
        np.arange(len(data.validation)),
        sequence_length=data.sequence_length,
        block_hours=data.windows.block_hours,
        num_time_blocks=world.config.model.num_time_blocks,
    )
    scores_B = bundle.score(batch, story_vectors=bundle.stories.vectors_ND, product_vectors=bundle.products.vectors_ND)
    assert scores_B.mean() == pytest.approx(data.validation.clicked_B.mean(), abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "clicked", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], [True, False, False, False], np.log(1 / 3)),
        ([2.0, 2.0], [True, False], -2.0),
        ([1.0, 2.0], [False, False], 0.0),
        ([1.0, np.nan], [True, False], 0.0),
        ([], [], 0.0),
    ],
)
def test_the_offset_is_the_one_that_meets_the_click_rate(logits, clicked, expected) -> None:
    from storyrec.pack import calibration_offset

    offset = calibration_offset(np.array(logits, np.float32), np.array(clicked, bool))
    assert offset == pytest.approx(expected, abs=1e-6)


def test_a_difference_between_table_and_network_is_seen(world: World, packed: Path, tmp_path: Path) -> None:
    from storyrec.manifest import Manifest
    from storyrec.pack import measure_difference

    copy = tmp_path / "bundle"
    shutil.copytree(packed, copy)
    vectors_ND = np.load(copy / "items" / "story_vectors.npy")
    np.save(copy / "items" / "story_vectors.npy", np.roll(vectors_ND, 1, axis=0))
    model = build_aden(world.config, num_words=world.data.vocabulary.size)
    model.load_state_dict(load_weights(packed / "aden.safetensors"))
    swapped = Bundle.open_unverified(copy, Manifest("", world.data.day, {}))
    difference = measure_difference(swapped, world.data, model.eval(), logit_offset=logit_offset(packed))
    assert difference is not None
    assert difference > 1e-3
    np.save(copy / "items" / "story_vectors.npy", np.full_like(vectors_ND, np.nan))
    broken = Bundle.open_unverified(copy, Manifest("", world.data.day, {}))
    assert measure_difference(broken, world.data, model, logit_offset=0.0) is None


def test_the_batch_size_is_free_and_changes_no_score(world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    tables = {"story_vectors": bundle.stories.vectors_ND, "product_vectors": bundle.products.vectors_ND}
    whole_B = bundle.score(batch_of(world, world.data.holdout, num=50), **tables)
    for row in (0, 17, 49):
        single = batch_of(world, world.data.holdout.take(np.array([row])))
        assert bundle.score(single, **tables) == pytest.approx(whole_B[[row]], abs=1e-6)
    empty = batch_of(world, world.data.holdout.take(np.array([], int)))
    assert bundle.score(empty, **tables).shape == (0,)


def test_what_stands_at_padding_changes_no_score(world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    batch = batch_of(world, world.data.holdout, num=50)
    assert (batch.story_blocks_BS == 0).any()
    story_vectors = np.array(bundle.stories.vectors_ND)
    tables = {"product_vectors": bundle.products.vectors_ND}
    before_B = bundle.score(batch, story_vectors=story_vectors, **tables)
    story_vectors[0] = 100.0
    np.testing.assert_array_equal(bundle.score(batch, story_vectors=story_vectors, **tables), before_B)


def test_the_same_inputs_give_the_same_bundle(world: World, packed: Path, tmp_path: Path) -> None:
    again = make_bundle(world, tmp_path)
    for path in packed.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(packed)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("ranker.onnx", ["target_BD", "story_BSD", "story_blocks_BS", "product_BPD", "product_blocks_BP"]),
        ("ranker_of_one_user.onnx", ["target_BD", "story_LD", "story_blocks_L", "product_LD", "product_blocks_L"]),
    ],
)
def test_the_ranker_tells_nothing_of_the_machine_that_packed_it(packed: Path, name: str, inputs: list[str]) -> None:
    content = (packed / name).read_bytes()
    assert b".py" not in content
    assert b"/work" not in content
    session = onnxruntime.InferenceSession(content)
    assert [node.name for node in session.get_inputs()] == inputs


def shifted(catalog: Catalog, *, num: int) -> Catalog:
    """The catalog without its first items and with `num` more that nobody has seen."""
    keep = np.r_[0, 3 : len(catalog)]
    return Catalog(
        item_ids_N=np.r_[catalog.item_ids_N[keep], catalog.item_ids_N[-1] + 1 + np.arange(num)],
        titles=[*(catalog.titles[row] for row in keep), *(catalog.titles[1 + i] for i in range(num))],
        visual_raw_NV=np.concatenate([catalog.visual_raw_NV[keep], catalog.visual_raw_NV[1 : 1 + num]]),
        published_us_N=np.r_[catalog.published_us_N[keep], catalog.published_us_N[1 : 1 + num]],
        sources_N=np.r_[catalog.sources_N[keep], catalog.sources_N[1 : 1 + num]],
        category_ids_N=np.r_[catalog.category_ids_N[keep], catalog.category_ids_N[1 : 1 + num]],
    )


@pytest.mark.parametrize("domain", list(Domain))
def test_vectors_of_a_later_catalog_are_the_table_and_new_items_embedded(
    world: World, packed: Path, domain: Domain
) -> None:
    bundle = Bundle.load(packed)
    catalog = world.data.stories if domain is Domain.STORY else world.data.products
    table = bundle.table(domain)
    np.testing.assert_array_equal(bundle.vectors(catalog, domain=domain), table.vectors_ND)
    np.testing.assert_array_equal(bundle.match_vectors(catalog, domain=domain), table.match_NM)
    np.testing.assert_allclose(bundle.embed(catalog, domain=domain), table.vectors_ND, atol=1e-5)

    later = shifted(catalog, num=4)
    vectors_ND = bundle.vectors(later, domain=domain)
    np.testing.assert_array_equal(vectors_ND[1:-4], table.vectors_ND[3:])
    # a new item with the title and cover of a known one has its vector
    np.testing.assert_allclose(vectors_ND[-4:], table.vectors_ND[1:5], atol=1e-5)
    np.testing.assert_allclose(bundle.match_vectors(later, domain=domain)[-4:], table.match_NM[1:5], atol=1e-5)
    assert np.abs(table.vectors_ND[0]).max() == 0


def test_matching_vectors_are_those_of_the_pretrained_extractors(world: World, packed: Path) -> None:
    bundle = Bundle.load(packed)
    width = world.config.model.width
    assert bundle.stories.match_NM.shape == (len(world.data.stories), 2 * width)
    summed_ND = bundle.stories.match_NM[:, :width] + bundle.stories.match_NM[:, width:]
    assert np.abs(summed_ND - bundle.stories.vectors_ND).max() > 0.1


def test_a_world_without_covers_packs_and_scores(tmp_path: Path) -> None:
    world = make_world(tmp_path, covers=False)
    bundle = Bundle.load(make_bundle(world, tmp_path / "packed"))
    assert bundle.onnx_difference is not None
    assert bundle.onnx_difference < 1e-5
    assert (bundle.products.match_NM[:, world.config.model.width :] == 0).all()


def _files(packed: Path) -> list[str]:
    return [path.relative_to(packed).as_posix() for path in sorted(packed.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_every_file_is_watched(packed: Path, tmp_path: Path, damage: str) -> None:
    for name in _files(packed):
        copy = tmp_path / "copy"
        shutil.copytree(packed, copy)
        path = copy / name
        if damage == "missing":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        with pytest.raises(ModelError, match=name if name != "manifest.json" else "manifest") as caught:
            Bundle.load(copy)
        assert str(copy) in str(caught.value)
        shutil.rmtree(copy)


def test_no_bundle_at_all_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"manifest\.json"):
        Bundle.load(tmp_path / "nowhere")


def test_a_bundle_of_another_format_is_refused(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    manifest = json.loads((packed / "manifest.json").read_text())
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(ModelError, match="format 2"):
        Bundle.load(tmp_path / "copy")


@pytest.mark.parametrize("missing", ["dual/dual.safetensors", "aden/aden.safetensors", "aden/training.json"])
def test_a_missing_model_leaves_no_bundle(world: World, tmp_path: Path, missing: str) -> None:
    dual, aden = write_models(world, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelError, match=Path(missing).name):
        pack_bundle(world.config, dataset=world.dataset, dual=dual, aden=aden, out=tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aden", "dual"]


@pytest.mark.parametrize("name", ["dual", "aden"])
def test_weights_of_another_shape_leave_no_bundle(world: World, tmp_path: Path, name: str) -> None:
    wide = replace(
        world, config=world.config.model_copy(update={"model": world.config.model.model_copy(update={"width": 32})})
    )
    dual, aden = write_models(world, tmp_path / "own")
    other = dict(zip(("dual", "aden"), write_models(wide, tmp_path / "wide"), strict=True))
    models = {"dual": dual, "aden": aden} | {name: other[name]}
    with pytest.raises(ModelError, match="do not fit"):
        pack_bundle(world.config, dataset=world.dataset, **models, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def _pack_on_a_full_disk(world: World, folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
    try:
        pack_bundle(
            world.config, dataset=world.dataset, dual=folder / "dual", aden=folder / "aden", out=folder / "bundle"
        )
    except StorageError as error:
        os._exit(7 if "free space" in str(error) else 1)
    os._exit(1)


def test_a_full_disk_leaves_no_bundle(world: World, tmp_path: Path) -> None:
    write_models(world, tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_pack_on_a_full_disk, args=(world, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aden", "dual"]


def test_loading_and_scoring_need_no_torch(world: World, packed: Path) -> None:
    script = """
        import sys
        from pathlib import Path

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "tokenizers", "safetensors", "sklearn", "scipy", "onnx", "feast"}:
                    raise ImportError(f"{name} is not installed here")

        sys.meta_path.insert(0, Refuse())
        import numpy as np
        from storyrec.bundle import Bundle
        bundle = Bundle.load(Path(sys.argv[1]))
        width, length = bundle.config.model.width, bundle.config.features.sequence_length
        scores = bundle.run_ranker(
            target_BD=bundle.stories.vectors_ND[[1, 2]],
            story_BSD=np.zeros((2, length, width), np.float32),
            story_blocks_BS=np.zeros((2, length), np.int64),
            product_BPD=np.zeros((2, length, width), np.float32),
            product_blocks_BP=np.zeros((2, length), np.int64),
        )
        print(*(float(score) for score in scores))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    scores = [float(score) for score in done.stdout.split()]
    assert len(scores) == 2
    assert all(0 < score < 1 for score in scores)
