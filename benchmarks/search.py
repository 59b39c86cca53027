"""Search in an index of vectors of 768 numbers, beside faiss's flat index, and LanceDB's recall against exact search.

    python benchmarks/search.py [--json FILE] [--rows 100000 1000000] [--rounds 5] [--only answers]

- answers: the 20 best rows for one query, and for 100 at a time, on two threads; both compare all vectors.
- first: from the start of Python to the answer to a text in a fresh process, which loads CLIP B/16 of random weights.
  Beside it transformers encodes the text and faiss reads its index. All files lie in the file cache. Memory is the peak
  of the process, and what of it came with the search, after the text was encoded.
- lance: the 10 best rows for one query by LanceDB's own index, and how many of the true 10 are among them.

The vectors are random, and their spread falls along the axes as that of embeddings does: with the inverse square root.
The queries are of the same kind, and not in the index. A million vectors take 3 GB on the disk for each of the three.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import (
    MB,
    THREADS,
    Case,
    in_fresh_process,
    interleaved_seconds,
    option_parser,
    parse_options,
    process_arguments,
    resident_bytes,
    write_results,
)

DIM = 768
ROWS = [100_000, 1_000_000]
ROWS_OF_SHARD = 16_384
TOP, TOP_OF_RECALL = 20, 10
QUERIES = 100  # at a time; and for the recall
TEXT = "a photo of a red bicycle"
SIZES: dict[str, Any] = {"vision_config": {"patch_size": 16}, "projection_dim": DIM}
KINDS = ("answers", "first", "lance")
PARTS = ("import_s", "load_s", "encode_s", "search_s")

Vectors = npt.NDArray[np.float32]


def random_vectors(count: int, seed: int, dim: int) -> Vectors:
    """Return random unit vectors (count, dim)."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    vectors /= np.sqrt(np.arange(1, dim + 1, dtype=np.float32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_vectors(folder: Path, rows: int, dim: int, model: str, weights: str) -> None:
    """Write an index of random vectors."""
    from twinlens.index import ShardContent, write_index, write_shard

    folder.mkdir()
    starts = range(0, rows, ROWS_OF_SHARD)
    for shard, start in enumerate(starts):
        vectors = random_vectors(min(ROWS_OF_SHARD, rows - start), shard + 1, dim)
        paths = [f"/images/{row:08}.jpg" for row in range(start, start + len(vectors))]
        write_shard(folder, shard, ShardContent(vectors, paths, ["0" * 64] * len(paths), [1] * len(paths)), start)
    head = {"model": model, "weights": weights, "dim": dim, "dtype": "float32"}
    write_index(folder, {**head, "rows": rows, "shards": len(starts)})


def flat_index(index: Any) -> Any:
    """Return faiss's flat index of the same vectors."""
    import faiss

    flat = faiss.IndexFlatIP(index.dim)
    for shard in index.shards:
        flat.add(np.asarray(shard))
    return flat


def compare_answers(index: Any, rounds: int) -> Case:
    """Time one query and many at a time, and compare the answers with those of faiss, where it is installed."""
    from twinlens.index import search

    queries = random_vectors(QUERIES, 0, index.dim)
    variants: dict[tuple[str, int], Callable[[], object]] = {}
    for count in (1, QUERIES):
        variants["twinlens", count] = lambda count=count: search(index, queries[:count], TOP)  # type: ignore[misc]
    case: Case = {"rows": index.rows, "dim": index.dim, "file_mb": file_mb(index.folder), "runs": rounds}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        flat = flat_index(index)
        scores, rows = flat.search(queries, TOP)
        found = search(index, queries, TOP)
        case["same_rows"] = float((found.rows == rows).mean())
        case["score_difference"] = float(f"{np.abs(found.scores - scores).max():.1e}")
        for count in (1, QUERIES):
            variants["faiss", count] = lambda count=count: flat.search(queries[:count], TOP)  # type: ignore[misc]
    seconds = interleaved_seconds(variants, rounds, settle=True)
    case["ms"] = {f"{library}, {count}": round(seconds[library, count] * 1e3, 2) for library, count in variants}
    return case


def file_mb(folder: Path, pattern: str = "embeddings-*.safetensors") -> int:
    """Return the size of files in a folder."""
    return round(sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file()) / MB)


def first_answer(library: str, folder: str, model: str) -> dict[str, Any]:
    """Answer a text in this process; return the seconds of each part, and the memory."""
    times = [time.perf_counter()]
    if library == "twinlens":
        from twinlens.index import Searcher

        times.append(time.perf_counter())
        searcher = Searcher.open(folder, model)
        times.append(time.perf_counter())
        embed = searcher.embed_text(TEXT)
        times.append(time.perf_counter())
        before = resident_bytes("VmHWM")
        rows = [result.row for result in searcher.nearest(embed, TOP)]
    else:
        import faiss
        from transformers import AutoModel, AutoTokenizer

        faiss.omp_set_num_threads(THREADS)
        times.append(time.perf_counter())
        encoder, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        times.append(time.perf_counter())
        with torch.inference_mode():
            features = encoder.get_text_features(**tokenizer([TEXT], return_tensors="pt")).pooler_output
        embed = torch.nn.functional.normalize(features, dim=-1)
        times.append(time.perf_counter())
        before = resident_bytes("VmHWM")
        rows = faiss.read_index(f"{folder}.faiss").search(embed.numpy(), TOP)[1][0].tolist()
    times.append(time.perf_counter())
    peak = resident_bytes("VmHWM")
    seconds = (end - start for start, end in pairwise(times))
    memory = {"peak_mb": peak / MB, "search_mb": (peak - before) / MB}
    return {**dict(zip(PARTS, seconds, strict=True)), **memory, "rows": rows}


def compare_first_answers(folder: Path, model: Path, rounds: int) -> list[Case]:
    """Start both libraries in turn, once unmeasured, and return the medians."""
    libraries = ["twinlens"]
    if importlib.util.find_spec("faiss"):
        import faiss

        from twinlens.index import Index

        faiss.write_index(flat_index(Index.open(folder)), f"{folder}.faiss")
        libraries.append("faiss")
    runs: dict[str, list[dict[str, Any]]] = {library: [] for library in libraries}
    for turn in range(rounds + 1):
        for library in libraries[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            run = in_fresh_process(__file__, library, folder, model)
            run["total_s"] = time.perf_counter() - begin
            if turn:
                runs[library].append(run)
    parts = {**dict.fromkeys((*PARTS, "total_s"), 2), "peak_mb": None, "search_mb": None}
    expected = runs["twinlens"][0]["rows"]
    return [
        {
            "library": library,
            "file_mb": file_mb(folder),
            **{part: round(statistics.median(run[part] for run in of), digits) for part, digits in parts.items()},
            "runs": rounds,
            "same_rows": statistics.mean(row == other for row, other in zip(of[0]["rows"], expected, strict=True)),
        }
        for library, of in runs.items()
    ]


def measure_lance(index: Any) -> Case:
    """Make LanceDB's index, and measure its answers and their recall."""
    from twinlens.index import search, search_table
    from twinlens.index.lance import FOLDER, open_table

    queries = random_vectors(QUERIES, 0, index.dim)
    exact = search(index, queries, TOP_OF_RECALL)
    begin = time.perf_counter()
    open_table(index)
    build = time.perf_counter() - begin
    search_table(index, queries[0], TOP_OF_RECALL)
    seconds, hits = [], 0
    for query, rows in zip(queries, exact.rows.tolist(), strict=True):
        begin = time.perf_counter()
        found = search_table(index, query, TOP_OF_RECALL)
        seconds.append(time.perf_counter() - begin)
        hits += len({*found.rows[0].tolist()} & {*rows})
    return {
        "rows": index.rows,
        "build_s": round(build, 1),
        "disk_mb": file_mb(index.folder / FOLDER, "*"),
        "ms": round(statistics.median(seconds) * 1e3, 2),
        "recall_at_10": round(hits / (TOP_OF_RECALL * len(queries)), 4),
        "queries": len(queries),
    }


def measure(folder: Path, rows: int, model: Path, weights: str, options: Any) -> dict[str, list[Case]]:
    """Measure one index, by kind."""
    from twinlens.index import Index

    write_vectors(folder, rows, options.dim, str(model), weights)
    cases: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    if options.only in ("", "answers"):
        cases["answers"].append(compare_answers(Index.open(folder), options.rounds))
    if options.only in ("", "first"):
        first = compare_first_answers(folder, model, max(1, options.rounds // 2))
        cases["first"] += [{"rows": rows, **case} for case in first]
    if options.only in ("", "lance") and importlib.util.find_spec("lancedb"):
        cases["lance"].append(measure_lance(Index.open(folder)))
    return cases


def main() -> None:
    """Measure every case, or one of `in_fresh_process`."""
    torch.set_num_threads(THREADS)
    if arguments := process_arguments():
        print(json.dumps(first_answer(*arguments)))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="the numbers of vectors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("", *KINDS), default="")
    parser.add_argument("--folder", help="where to write the vectors, in place of the folder for temporary files")
    options = parse_options(parser)
    options.dim = DIM
    from inputs import write_model, write_processor

    from twinlens.index import weights_fingerprint
    from twinlens.inference import load_exact_model

    cases: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        model = Path(temporary) / "model"
        write_model(model, "CLIP", SIZES)
        write_processor(model, "CLIP")
        weights = weights_fingerprint(load_exact_model(model))
        for rows in options.rows:
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                for kind, of in measure(Path(folder) / "index", rows, model, weights, options).items():
                    cases[kind] += of
                    for case in of:
                        print(kind, *case.values(), sep="\t", flush=True)
    missing = {
        "faiss": "faiss-cpu is not installed" if not importlib.util.find_spec("faiss") else "",
        "LanceDB": "lancedb is not installed" if not importlib.util.find_spec("lancedb") else "",
    }
    absent = {peer: why for peer, why in missing.items() if why}
    write_results(options, cases, "faiss-cpu", "lancedb", "numpy", **({"not_measured": absent} if absent else {}))


if __name__ == "__main__":
    main()
