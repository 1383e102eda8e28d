"""How fast the stories near a vector are found, exactly and approximately, and what the approximate search misses.

    python benchmarks/neighbours.py BUNDLE [--stories 500000] [--width 64] [--threads 2]

BUNDLE is the folder of a trained bundle. Its stories' matching vectors are brought to the width by their principal
components, and copied with a jitter as large as the distance to the tenth nearest story until there are enough:
isotropic Gaussians would have no structure that an index could use, real items have. Queries are the bundle's
products and jittered stories, other ones than the index was tuned on. Prints seconds to build and to tune, MiB,
queries per second of the nearest 500, one by one and in batches, and the recall of the nearest 10 and 500.
"""

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
from measure import describe_machine, in_own_process, peak_memory_mib

from storyrec.bundle import table_path
from storyrec.features.neighbours import STORIES, StoryIndex, build_index
from storyrec.schema import Domain

VERSION = "0" * 16
TOP_K = 500
NEIGHBOUR = 10
NUM_QUERIES, NUM_SINGLE, NUM_EXACT = 1_024, 64, 128

Floats = npt.NDArray[np.float32]


def make_items(bundle: Path, *, num_stories: int, width: int) -> dict[str, npt.NDArray[np.generic]]:
    """An item table of many stories, and as many queries of either domain that are none of its items."""
    random = np.random.default_rng(0)
    stories, products = (np.load(table_path(bundle, domain, "match_vectors"))[1:] for domain in Domain)
    if width < stories.shape[1]:
        centre = stories.mean(axis=0)
        axes = np.linalg.svd(stories[:10_000] - centre, full_matrices=False)[2][:width].T
        kept = ((stories - centre) @ axes).var(axis=0).sum() / stories.var(axis=0).sum()
        print(f"{kept:.1%} of the variance of {stories.shape[1]} dimensions kept in {width}")
        stories, products = ((vectors - centre) @ axes for vectors in (stories, products))
    exact = faiss.IndexFlatL2(width)
    exact.add(np.ascontiguousarray(stories, np.float32))
    squares, _ = exact.search(np.ascontiguousarray(stories[:500], np.float32), NEIGHBOUR + 1)
    jitter = np.sqrt(np.median(squares[:, NEIGHBOUR]) / width)

    def jittered(number: int) -> Floats:
        copies = stories[random.integers(len(stories), size=number)]
        return (copies + random.normal(scale=jitter, size=copies.shape)).astype(np.float32)

    products = random.permutation(products).astype(np.float32)
    nothing = np.zeros((1, width), np.float32)
    return {
        "story_ids": np.arange(num_stories + 1),
        "story_match_vectors": np.concatenate([nothing, jittered(num_stories)]),
        "product_ids": np.arange(len(products) - NUM_QUERIES + 1),
        "product_match_vectors": np.concatenate([nothing, products[NUM_QUERIES:]]),
        "product_queries": products[:NUM_QUERIES],
        "story_queries": jittered(NUM_QUERIES),
    }


def build(bundle: Path, folder: Path, num_stories: int, width: int, threads: int) -> dict[str, Floats]:
    """Build the index; called in a process of its own, like `search`."""
    faiss.omp_set_num_threads(threads)
    items = make_items(bundle, num_stories=num_stories, width=width)
    start = time.perf_counter()
    index = build_index(items, version=VERSION, folder=folder)
    print(
        f"built in {time.perf_counter() - start:.1f} s, process {peak_memory_mib():,.0f} MiB; "
        f"{(folder / STORIES).stat().st_size / 2**20:,.0f} MiB on disk; "
        f"{index.info.num_cells} cells, {index.info.num_probed} probed; on record: {index.info.recall}",
        flush=True,
    )
    return {name: np.asarray(items[f"{name}_queries"], np.float32) for name in ("product", "story")}


def search(folder: Path, queries: dict[str, Floats], threads: int) -> None:
    """Ask the memory-mapped index."""
    faiss.omp_set_num_threads(threads)
    before, start = peak_memory_mib(), time.perf_counter()
    index = StoryIndex.load(folder, version=VERSION)
    print(f"loaded in {time.perf_counter() - start:.3f} s, {peak_memory_mib() - before:,.0f} MiB")
    for exact, number in ((True, NUM_EXACT), (False, NUM_QUERIES)):
        some = queries["product"][:number]
        index.search(some[:16], top_k=TOP_K, exact=exact)  # from disk into memory
        start = time.perf_counter()
        index.search(some, top_k=TOP_K, exact=exact)
        middle = time.perf_counter()
        for query_D in some[:NUM_SINGLE]:
            index.search(query_D[None], top_k=TOP_K, exact=exact)
        end = time.perf_counter()
        print(
            f"{'exact' if exact else 'approximate':12} {number / (middle - start):8,.0f} queries/s in a batch "
            f"{NUM_SINGLE / (end - middle):8,.0f} one by one   process {peak_memory_mib():,.0f} MiB",
            flush=True,
        )
    for name, some in queries.items():
        shares = index.recall(some[:NUM_EXACT], depths=(10, TOP_K)).items()
        print(f"recall of {name} queries: {', '.join(f'{share:.4f} @{top_k}' for top_k, share in shares)}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--stories", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    print(f"FAISS {faiss.__version__}, {arguments.threads} threads")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / VERSION
        queries = in_own_process(build, arguments.bundle, folder, arguments.stories, arguments.width, arguments.threads)
        in_own_process(search, folder, queries, arguments.threads)


if __name__ == "__main__":
    main()
