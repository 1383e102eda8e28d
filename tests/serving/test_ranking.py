"""One request at a time gives the scores of the offline evaluation."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from storyrec.bundle import Bundle
from storyrec.data.batches import make_batch
from storyrec.evaluate import score_instances
from storyrec.serving.ranking import NO_CLICKS, Clicks, rank
from trained import World

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def bundle(packed: Path) -> Bundle:
    return Bundle.load(packed)


def all_clicks(world: World, user: int, *, until_us: int) -> tuple[Clicks, Clicks]:
    """Everything that the user ever clicked before a time: no window is applied, order is shuffled."""
    data, generator = world.data, np.random.default_rng(user)
    found = []
    for log in (data.story_clicks, data.product_clicks):
        rows = generator.permutation(np.flatnonzero((log.user_ids_C == user) & (log.clicked_us_C <= until_us)))
        found.append(Clicks(log.item_ids_C[rows], log.clicked_us_C[rows]))
    return found[0], found[1]


def test_online_scores_are_the_offline_ones(world: World, bundle: Bundle) -> None:
    data = world.data
    offline_B = score_instances(bundle, data, data.holdout)
    rows = np.linspace(0, len(data.holdout) - 1, 60).astype(int)
    with_both = 0
    for row in rows:
        now_us = int(data.holdout.shown_us_B[row])
        stories, products = all_clicks(world, int(data.holdout.user_ids_B[row]), until_us=now_us)
        with_both += len(stories.item_ids_C) > 0 and len(products.item_ids_C) > 0
        story_id = data.stories.item_ids_N[data.holdout.story_rows_B[row]]
        online = rank(bundle, story_clicks=stories, product_clicks=products, now_us=now_us, candidate_ids=[story_id])
        assert online[0] == pytest.approx(offline_B[row], abs=1e-6)
    assert with_both > 40


def test_candidates_do_not_disturb_each_other(world: World, bundle: Bundle) -> None:
    now_us = int(world.data.holdout.shown_us_B.max())
    stories, products = all_clicks(world, 1, until_us=now_us)
    ids = bundle.stories.ids_N[1:40]
    request = {"story_clicks": stories, "product_clicks": products, "now_us": now_us}
    together = rank(bundle, candidate_ids=ids, **request)
    np.testing.assert_allclose(rank(bundle, candidate_ids=ids[::-1], **request)[::-1], together, atol=1e-6)
    for place in (0, 20):
        assert rank(bundle, candidate_ids=ids[[place]], **request)[0] == pytest.approx(together[place], abs=1e-6)
    assert together.std() > 0.001


def test_the_history_is_cut_as_in_training(world: World, bundle: Bundle) -> None:
    history_days = int(bundle.config.windows.history_days)
    midnight_us = 20_600 * DAY_US
    now_us = midnight_us + 5 * HOUR_US
    since_us = midnight_us - history_days * DAY_US
    story = bundle.stories.ids_N[3]

    def score(*clicked_us: int) -> float:
        clicks = Clicks([story] * len(clicked_us), clicked_us)
        return float(
            rank(
                bundle,
                story_clicks=clicks,
                product_clicks=NO_CLICKS,
                now_us=now_us,
                candidate_ids=[bundle.stories.ids_N[5]],
            )[0]
        )

    nothing = score()
    assert score(since_us) != nothing
    assert score(since_us - 1) == nothing
    assert score(now_us - 1) != nothing
    assert score(now_us) == nothing
    assert score(now_us + 1) == nothing


def test_only_the_most_recent_clicks_count(bundle: Bundle) -> None:
    length = bundle.config.features.sequence_length
    now_us = 20_600 * DAY_US
    ids = np.resize(bundle.stories.ids_N[1:], length + 5)
    clicks = Clicks(ids, now_us - HOUR_US * np.arange(1, length + 6))
    kept = Clicks(ids[:length], now_us - HOUR_US * np.arange(1, length + 1))
    request = {"product_clicks": NO_CLICKS, "now_us": now_us, "candidate_ids": bundle.stories.ids_N[1:9]}
    np.testing.assert_array_equal(
        rank(bundle, story_clicks=clicks, **request), rank(bundle, story_clicks=kept, **request)
    )


def test_an_unknown_candidate_is_a_story_without_title_and_cover(bundle: Bundle) -> None:
    unknown = int(bundle.stories.ids_N[-1]) + 1
    request = {"story_clicks": NO_CLICKS, "product_clicks": NO_CLICKS, "now_us": 20_600 * DAY_US}
    scores = rank(bundle, candidate_ids=[unknown, 0, int(bundle.stories.ids_N[1])], **request)
    assert np.isfinite(scores).all()
    assert scores[0] == scores[1] != scores[2]


def test_the_batch_of_a_request_equals_make_batch(world: World, bundle: Bundle) -> None:
    """The same slots and blocks, not only the same scores."""
    from storyrec.serving.ranking import cut_history, ranker_inputs

    data = world.data
    index_B = np.linspace(0, len(data.holdout) - 1, 30).astype(int)
    batch = make_batch(
        data,
        data.holdout,
        index_B,
        sequence_length=bundle.config.features.sequence_length,
        block_hours=data.windows.block_hours,
        num_time_blocks=bundle.config.model.num_time_blocks,
    )
    for place, row in enumerate(index_B):
        now_us = int(data.holdout.shown_us_B[row])
        stories, products = all_clicks(world, int(data.holdout.user_ids_B[row]), until_us=now_us)
        history = cut_history(bundle, story_clicks=stories, product_clicks=products, now_us=now_us)
        inputs = ranker_inputs(bundle, history, candidate_ids=[], stories=bundle.stories)
        for name, table, slots_L, blocks_L in (
            ("story", bundle.stories, batch.story_slots_BS[place], batch.story_blocks_BS[place]),
            ("product", bundle.products, batch.product_slots_BP[place], batch.product_blocks_BP[place]),
        ):
            np.testing.assert_array_equal(inputs[f"{name}_LD"], table.vectors_ND[slots_L])
            np.testing.assert_array_equal(inputs[f"{name}_blocks_L"], blocks_L)


def test_ranking_and_routes_need_only_what_the_serving_image_has(packed: Path) -> None:
    script = """
        import sys
        from pathlib import Path

        import numpy

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "tokenizers", "sklearn", "scipy", "onnx", "feast"}:
                    raise ImportError(f"{name} is not installed here")

        sys.meta_path.insert(0, Refuse())
        from storyrec.serving import app, commands, grpc_server, oip, plain, server
        from storyrec.bundle import Bundle
        from storyrec.serving.ranking import NO_CLICKS, rank
        from storyrec.serving.extractor import embed_stories
        bundle = Bundle.load(Path(sys.argv[1]))
        nothing = numpy.zeros((1, 512), numpy.float32)
        embed_stories(bundle, story_ids_N=numpy.array([10**9]), titles=["two words"], visual_raw_NV=nothing)
        print(*rank(bundle, story_clicks=NO_CLICKS, product_clicks=NO_CLICKS, now_us=1, candidate_ids=[1, 2]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2
