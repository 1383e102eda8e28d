"""Which pairs are pushed apart, and which are held out."""

import numpy as np

from storyrec.pairs import Mounts, draw_others, split_pairs


def many_pairs(num_stories: int, num_products: int, num_pairs: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    pairs = np.stack([generator.integers(1, num_stories, num_pairs), generator.integers(1, num_products, num_pairs)], 1)
    return np.unique(pairs, axis=0)


def test_mounts_contain_exactly_the_pairs() -> None:
    pairs_M2 = many_pairs(12, 9, 40)
    mounts, known = Mounts(pairs_M2), {tuple(pair) for pair in pairs_M2.tolist()}
    stories, products = (grid.ravel() for grid in np.meshgrid(np.arange(1, 12), np.arange(1, 9)))
    expected = [pair in known for pair in zip(stories.tolist(), products.tolist(), strict=True)]
    assert mounts.contain(stories, products).tolist() == expected


def test_mounts_contain_each_story_with_each_product() -> None:
    pairs_M2 = many_pairs(12, 9, 40)
    known = {tuple(pair) for pair in pairs_M2.tolist()}
    stories, products = pairs_M2[5:17, 0], pairs_M2[5:17, 1]
    expected = [[(story, product) in known for product in products.tolist()] for story in stories.tolist()]
    assert Mounts(pairs_M2).contain_all(stories, products).tolist() == expected
    assert np.diagonal(expected).all()
    assert not np.array_equal(expected, np.transpose(expected))  # rows are stories, columns are products


def test_a_related_pair_is_never_a_negative() -> None:
    pairs_M2 = many_pairs(20, 12, 60)
    known = {tuple(pair) for pair in pairs_M2.tolist()}
    mounts, generator = Mounts(pairs_M2), np.random.default_rng(1)
    for _ in range(30):
        batch_B2 = generator.permutation(pairs_M2)[:25]
        others_B = draw_others(batch_B2, mounts=mounts, generator=generator)
        for (story, product), other in zip(batch_B2.tolist(), others_B, strict=True):
            if other >= 0:
                other_story, other_product = batch_B2[other].tolist()
                assert story != other_story
                assert product != other_product
                assert (story, other_product) not in known
                assert (other_story, product) not in known


def test_every_unrelated_pair_is_drawn_about_equally() -> None:
    pairs_B2 = np.stack([np.arange(1, 9), np.arange(1, 9)], 1)
    mounts, generator = Mounts(pairs_B2), np.random.default_rng(2)
    counts = np.zeros((8, 8))
    for _ in range(2_000):
        counts[np.arange(8), draw_others(pairs_B2, mounts=mounts, generator=generator)] += 1
    assert not counts.diagonal().any()
    assert counts[~np.eye(8, dtype=bool)].min() > 200  # expected: 2000 / 7


def test_pairs_of_one_story_have_no_negative() -> None:
    pairs_B2 = np.array([[5, 1], [5, 2], [5, 3]])
    assert draw_others(pairs_B2, mounts=Mounts(pairs_B2), generator=np.random.default_rng(0)).tolist() == [-1] * 3
    pairs_B2 = np.array([[5, 1], [5, 2], [6, 3]])
    assert draw_others(pairs_B2, mounts=Mounts(pairs_B2), generator=np.random.default_rng(0))[:2].tolist() == [2, 2]


def test_split_keeps_each_story_on_one_side() -> None:
    pairs_M2 = many_pairs(40, 30, 150)
    training, validation = split_pairs(pairs_M2, validation_share=0.2, generator=np.random.default_rng(0))
    assert sorted(map(tuple, np.concatenate([training, validation]).tolist())) == sorted(map(tuple, pairs_M2.tolist()))
    assert not set(training[:, 0]) & set(validation[:, 0])
    assert len(set(validation[:, 0])) == round(0.2 * len(np.unique(pairs_M2[:, 0])))
    few = pairs_M2[pairs_M2[:, 0] < 4]
    assert all(np.array_equal(part, few) for part in split_pairs(few, validation_share=0.1,
                                                                generator=np.random.default_rng(0)))  # fmt: skip
