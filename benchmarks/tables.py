"""The tables and plots of docs/benchmarks.md and docs/search.md, written from the JSON files in benchmarks/results/.

    python benchmarks/tables.py [--check]

A table replaces what stands between `<!-- table: NAME -->` and `<!-- end -->`, and a plot, which is a file in
docs/pictures/, what stands between `<!-- plot: NAME -->` and `<!-- end -->`. Where a JSON file is missing, or has no
cases, the page says so. With `--check` nothing is written, and what differs is an error. Needs nothing but Python.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path
from typing import Any

import plots

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "benchmarks.md"
SEARCH_PAGE = PROJECT / "docs" / "search.md"
PICTURES = PROJECT / "docs" / "pictures"

Result = dict[str, Any]  # a JSON file: "environment" and "cases"
Row = list[str]  # the cells of a row


def number(value: float, decimals: int = 0) -> str:
    """Return a number with thousands separators; halves of what the JSON says are rounded up."""
    exact = Decimal(str(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{exact:,}"


def by_case(result: Result, *keys: str) -> dict[tuple[Any, ...], Result]:
    """Return the cases by the values of `keys`."""
    return {tuple(case[key] for key in keys): case for case in result["cases"]}


TOWERS = {"siglip-b16": "SigLIP B/16-224", "clip-b32": "CLIP B/32", "clip-l14": "CLIP L/14"}
GPU_TOWERS = {"siglip-b16-224": "SigLIP B/16-224", "siglip-so400m14-384": "SigLIP So400m/14-384"}
TEXT_TOWERS = {"clip": "CLIP", "siglip": "SigLIP"}
ZERO_SHOT = {"clip-b16": "CLIP B/16", "siglip-b16": "SigLIP B/16-224"}


def variants_of(result: Result, key: str) -> list[str]:
    """Return the names of all variants, in the order in which they were measured."""
    return list(dict.fromkeys(variant for case in result["cases"] for variant in case[key]))


def cells(values: Result, variants: Iterable[str], to_text: Callable[[float], str]) -> list[str]:
    """Return the values of the variants; one that was not measured has an empty cell."""
    return [to_text(values[variant]) if variant in values else "" for variant in variants]


def towers(result: Result) -> list[Row]:
    """Return milliseconds of image towers, and the share of the best rate of matrix products."""
    variants = variants_of(result, "ms")
    rows = [["image tower", "dtype", "images", *variants, "share of the best rate, %"]]
    for case in result["cases"]:
        tower, dtype, batch = case["case"].rsplit("-", 2)
        best = max(product["gflop_per_s"] for product in result["products"] if product["dtype"] == dtype)
        share = 100 * case["gflop"] / (case["ms"]["twinlens, optimised"] / 1e3) / best
        times = cells(case["ms"], variants, lambda ms: number(ms, 1 if ms < 100 else 0))
        rows.append([TOWERS[tower], dtype, batch, *times, number(share)])
    return rows


def tower_errors(result: Result) -> list[Row]:
    """Return 1 minus the cosine to float64, the worst of all batch sizes."""
    variants = variants_of(result, "error")
    rows = [["image tower", "dtype", *variants]]
    worst: dict[tuple[str, str], dict[str, float]] = {}
    for case in result["cases"]:
        tower, dtype, _ = case["case"].rsplit("-", 2)
        errors = worst.setdefault((tower, dtype), {})
        for variant, error in case["error"].items():
            errors[variant] = max(error, errors.get(variant, 0))
    for (tower, dtype), errors in worst.items():
        rows.append([TOWERS[tower], dtype, *cells(errors, variants, "{:.0e}".format)])
    return rows


def products(result: Result) -> list[Row]:
    """Return the best rate of a matrix product in each library."""
    rows = [["dtype", "library", "10⁹ operations a second", "rows, columns in, columns out"]]
    for case in result["products"]:
        shape = ", ".join(number(size) for size in case["shape"])
        rows.append([case["dtype"], case["library"], number(case["gflop_per_s"]), shape])
    return rows


def gpu_towers(result: Result) -> list[Row]:
    """Return images a second on a GPU."""
    variants = variants_of(result, "images_per_s")
    rows = [["image tower", "images", *variants]]
    for case in result["cases"]:
        tower, _, batch = case["case"].rsplit("-", 2)
        rows.append([GPU_TOWERS[tower], batch, *cells(case["images_per_s"], variants, number)])
    return rows


def text_encoding(result: Result) -> list[Row]:
    """Return milliseconds a text, from strings and from ids, and the error."""
    rows = [["text tower", "library", "from strings, ms", "from ids, ms", "error"]]
    cases = {case["case"]: case for case in result["cases"]}
    for tower, name in TEXT_TOWERS.items():
        strings, ids = cases[f"{tower}-strings"], cases[f"{tower}-ids"]
        for variant, ms in strings["ms_each"].items():
            (from_ids,) = cells(ids["ms_each"], [variant], lambda ms: number(ms, 2))
            rows.append([name, variant, number(ms, 2), from_ids, f"{strings['error'][variant]:.0e}"])
    return rows


def zero_shot(result: Result) -> list[Row]:
    """Return milliseconds an image, with all labels."""
    rows = [["model", "", "images", "ms an image", "largest difference of a score"]]
    for case in result["cases"]:
        for variant, ms in case["ms_each"].items():
            count, difference = case["images"][variant], case["score_difference"][variant]
            rows.append([ZERO_SHOT[case["case"]], variant, str(count), number(ms), f"{difference:.0e}"])
    return rows


def start(result: Result) -> list[Row]:
    """Return the seconds until the first answer."""
    rows = [["", "import, s", "`from_pretrained`, s", "answer, s", "whole process, s"]]
    for case in result["cases"]:
        parts = (number(case[part], 1) for part in ("import_s", "load_s", "answer_s", "total_s"))
        rows.append([case["library"], *parts])
    return rows


def memory(result: Result) -> list[Row]:
    """Return the memory of image towers, in MiB and as ratios of twinlens over transformers."""
    rows = [["image tower", "dtype", "batch", "MiB (sdpa)", "ratio, sdpa", "ratio, eager"]]
    cases = by_case(result, "case", "attention")
    for name in dict.fromkeys(case for case, _ in cases):
        tower, dtype, batch = name.rsplit("-", 2)
        sdpa, eager = cases[name, "sdpa"], cases[name, "eager"]
        ratios = [number(case["memory_ratio"], 2) for case in (sdpa, eager)]
        rows.append([TOWERS[tower], dtype, batch, number(sdpa["twinlens_mib"]), *ratios])
    return rows


def images(result: Result) -> list[Row]:
    """Return milliseconds an image, for the engines and for the code beside them."""
    rows = [["", "twinlens, ms", "transformers, ms", "openai-clip, ms", "speed over transformers"]]
    cases = by_case(result, "case", "variant")
    for case in dict.fromkeys(case for case, _ in cases):
        family, source = case.split(", ")
        for engine in ("pillow", "torch"):
            ours, theirs = cases[case, f"twinlens, {engine}"], cases[case, "transformers"]
            original = cases.get((case, "openai-clip"))
            rows.append(
                [
                    f'{family}{" from JPEG bytes" if source == "JPEG bytes" else ""}, `"{engine}"`',
                    number(ours["ms_each"], 2),
                    number(theirs["ms_each"], 2),
                    number(original["ms_each"], 2) if original else "",
                    number(ours["speed_over_transformers"], 1),
                ]
            )
    return rows


def texts(result: Result) -> list[Row]:
    """Return microseconds a caption."""
    vocabularies = {
        "CLIP": "CLIP",
        "SigLIP, T5 32k": "SigLIP (T5, 32k pieces)",
        "SigLIP 2, Gemma 256k": "SigLIP 2 (Gemma, 256k pieces)",
    }
    peers = "transformers", "sentencepiece"
    rows = [["", "twinlens, µs", *(f"{peer}, µs" for peer in peers), *(f"speed over {peer}" for peer in peers)]]
    cases = by_case(result, "case", "variant")
    for case, name in vocabularies.items():
        ours = cases[case, "twinlens"]
        theirs = [number(cases[case, peer]["us_each"], 1) if (case, peer) in cases else "" for peer in peers]
        speeds = [ours.get(f"speed_over_{peer}") for peer in peers]
        speeds = ["" if speed is None else number(speed, 1) for speed in speeds]
        rows.append([name, number(ours["us_each"], 1), *theirs, *speeds])
    return rows


def losses_compared(result: Result) -> list[Row]:
    """Return time and memory of the losses beside transformers'."""
    head = "16,384 pairs", "twinlens", "transformers", "speed"
    rows = [[*head, "memory, MiB", "transformers, MiB", "times less memory"]]
    for loss in ("sigmoid", "softmax"):
        case = result["cases"][f"{loss}-16384"]
        rows.append(
            [
                loss,
                f"{number(case['twinlens_s'], 1)} s",
                f"{number(case['transformers_s'], 1)} s",
                number(case["speed_ratio_s"], 1),
                number(case["twinlens_mib"]),
                number(case["transformers_mib"]),
                number(case["memory_ratio"], 1),
            ]
        )
    return rows


def losses_ranks(result: Result) -> list[Row]:
    """Return the memory of each of several processes."""
    sizes = ("1", "2", "3", "4")
    rows = [["ranks", *(f"{size}, MiB" for size in sizes)]]
    for loss in ("sigmoid", "softmax"):
        rows.append([loss, *(number(result["cases"][f"{loss}-{size}x4096"]["mib"]) for size in sizes)])
    return rows


def losses_alone(result: Result) -> list[Row]:
    """Return time and memory of a batch that the other library could not hold."""
    case = result["cases"]["sigmoid-131072"]
    return [
        ["pairs", "seconds", "memory above the inputs, MiB", "resident at most, MiB"],
        ["131,072", number(case["s"]), number(case["mib"]), number(case["resident_mib"])],
    ]


def share(value: float) -> str:
    """Return a relative difference with as many digits as matter."""
    if value == 0:
        return "0"
    return number(value, 2) if value >= 0.01 else f"{value:.0e}"


TRAINING: dict[str, tuple[str, Callable[[float], str]]] = {  # the cases of a row, and how its numbers are written
    "curve": ("loss, 50 updates: difference to float64", share),
    "curve, equal captions": ("the same with equal captions in a batch, which are not compared", share),
    "ranks": ("gradients, 2 processes: difference to one process", share),
    "ranks, scale": ("the same, of the logit scale", share),
    "ranks, local loss": ("gradients, 2 processes, `--local-loss --gather-with-grad`", share),
    "ranks, local loss, scale": ("the same, of the logit scale", share),
    "parts": ("gradients, batch in 4 parts: difference to the whole batch", share),
    "parts, scale": ("the same, of the logit scale", share),
    "memory": ("memory of 256 pairs, MB", number),
    "memory, parts": ("memory of 256 pairs in 16 parts, MB", number),
    "speed, tensors": ("pairs/s, from tensors", partial(number, decimals=1)),
    "speed, tensors, ratio": ("the same over transformers', median of all rounds", partial(number, decimals=2)),
    "speed, files": ("pairs/s, from JPEG files", partial(number, decimals=1)),
    "speed, files, ratio": ("the same over transformers', median of all rounds", partial(number, decimals=2)),
    "accuracy": ("accuracy, all defaults, %", lambda value: number(100 * value, 1)),
    "accuracy, as long": ("accuracy, epochs for as long as twinlens takes, %", lambda value: number(100 * value, 1)),
}


def training(result: Result) -> list[Row]:
    """Return what was measured of each library, in a column of its own."""
    found = by_case(result, "case", "library")
    libraries = list(dict.fromkeys(library for _, library in found))
    rows = [["", *libraries]]
    for case, (title, to_text) in TRAINING.items():
        values = {library: found[case, library]["value"] for library in libraries if (case, library) in found}
        if values:
            rows.append([title, *cells(values, libraries, to_text)])
    return rows


def training_accuracy(result: Result) -> list[Row]:
    """Return how much each library trained, and what it then knew."""
    rows = [["library", "epochs", "updates", "seconds", "accuracy, %"]]
    for case in result["cases"]:
        if case["case"].startswith("accuracy") and (case["library"], case["case"]) != ("twinlens", "accuracy, as long"):
            epochs = "by its rule" if case["library"] == "twinlens" else str(case["epochs"])
            measured = [number(case["updates"]), number(case["seconds"]), number(100 * case["value"], 1)]
            rows.append([case["library"], epochs, *measured])
    return rows


def fine_tuning(result: Result) -> list[Row]:
    """Return the accuracy by the number of pairs, and the seconds of the longest run."""
    cases = [case for case in result["cases"] if case["case"] == "pairs"]
    counts = sorted({case["pairs"] for case in cases})
    rows = [["pictures and words", "trained", *(f"{count} pairs, %" for count in counts), f"seconds, {counts[-1]}"]]
    for world, mode in dict.fromkeys((case["world"], case["mode"]) for case in cases):
        found = {case["pairs"]: case for case in cases if (case["world"], case["mode"]) == (world, mode)}
        shares = [number(100 * found[count]["accuracy"], 1) for count in counts]
        rows.append([world, mode, *shares, number(found[counts[-1]]["seconds"])])
    return rows


def fine_tuning_kept(result: Result) -> list[Row]:
    """Return what averages of the start and the tuned model know."""
    rows = [["share of the tuned model", "old words, %", "new words, %"]]
    for case in result["cases"]:
        if case["case"] == "kept":
            rows.append([f"{case['share']:g}", *(number(100 * case[words], 1) for words in ("old words", "new words"))])
    return rows


def conversion(result: Result) -> list[Row]:
    """Return memory and time of conversions."""
    names = {"siglip-b16-224": "SigLIP B/16-224", "siglip-so400m14-384": "SigLIP So400m/14-384"}
    head = "", "file, MB", "memory, `--no-verify`, MB", "memory, with proof, MB", "time, `--no-verify`, s"
    rows = [[*head, "without imports, s", "copy + fsync + sha256, s", "time, with proof, s"]]
    for case in result["cases"]:
        rows.append(
            [
                names[case["case"]],
                *(number(case[key]) for key in ("larger_file_mb", "no_verify_mb", "verify_mb")),
                *(number(case[key], 1) for key in ("no_verify_s", "no_verify_without_imports_s", "copy_and_hash_s")),
                number(case["verify_s"]),
            ]
        )
    return rows


def located(result: Result) -> list[Row]:
    """Return in how many pictures each method finds the thing."""
    rows = [["model", "method", "encodings", "pictures", "found, %", "found, % of kinds held out"]]
    for case in result["cases"]:
        shares = [(case["found"], case["pictures"]), (case["held_out_found"], case["held_out_pictures"])]
        percent = [number(100 * found / pictures) if pictures else "" for found, pictures in shares]
        rows.append([case["model"], case["method"], number(case["encodings"]), str(case["pictures"]), *percent])
    return rows


def embedding_job(result: Result) -> list[Row]:
    """Return how fast the files of a folder are embedded."""
    rows = [["variant", "images/s", "speed over transformers", "speed over transformers, float32"]]
    for case in result["cases"]:
        if case["case"] == "speed":
            ratios = case["speed_over_transformers"], case["speed_over_transformers_float32"]
            rows.append([case["variant"], number(case["images_per_s"], 1), *(number(ratio, 2) for ratio in ratios)])
    return rows


def embedding_job_memory(result: Result) -> list[Row]:
    """Return the memory of jobs of several lengths."""
    rows = [["images", "memory, MB"]]
    for case in result["cases"]:
        if case["case"] == "memory":
            rows.append([number(case["images"]), number(case["peak_mb"])])
    return rows


def embedding_job_billion(result: Result) -> list[Row]:
    """Return what 10^9 images take at the measured rates."""
    cores, images = result["environment"]["threads"], 10**9
    head = "model in", "images/s, a core", "days, 1,000 cores", "files read, TB", "index, float32, TB", "float16, TB"
    rows = [[*head]]
    files, vectors = images * result["file_bytes"] / 1e12, images * result["dim"] / 1e12
    for case in result["cases"]:
        if case["case"] == "speed" and "twinlens" in case["variant"]:
            rate = case["images_per_s"] / cores
            days = images / rate / 1000 / 86_400
            sizes = [number(size, 1) for size in (files, 4 * vectors, 2 * vectors)]
            rows.append([case["variant"].rsplit(" ", 1)[1], number(rate, 1), number(days, 1), *sizes])
    return rows


def naflex(result: Result) -> list[Row]:
    """Return milliseconds of a batch of images of many aspect ratios, without padding and with it."""
    rows = [["dtype", "padding, %", "packed, ms", "padded, ms", "transformers, ms", "speed over padded"]]
    for case in result["cases"]:
        times = [number(case[f"{variant}_ms"]) for variant in ("packed", "padded", "transformers")]
        padding, speed = number(100 * case["padding"]), number(case["speed_over_padded"], 2)
        rows.append([case["case"].rsplit("-", 1)[0], padding, *times, speed])
    return rows


def searches(result: Result) -> list[Row]:
    """Return milliseconds of exact search, for one query and for many at a time."""
    rows = [["vectors", "library", "1 query, ms", "100 queries, ms", "rows as twinlens, %"]]
    for case in result["cases"]["answers"]:
        for library in dict.fromkeys(name.split(", ")[0] for name in case["ms"]):
            times = [number(case["ms"][f"{library}, {count}"], 1) for count in (1, 100)]
            same = "" if library == "twinlens" else number(100 * case["same_rows"], 1)
            rows.append([number(case["rows"]), library, *times, same])
    return rows


def first_searches(result: Result) -> list[Row]:
    """Return the seconds until the first answer of a process, and its memory."""
    parts = {"import_s": "import, s", "load_s": "load, s", "encode_s": "text, s", "search_s": "search, s"}
    memory = ["memory, MB", "of the search, over the file"]
    rows = [["vectors", "library", *parts.values(), "whole process, s", *memory]]
    for case in result["cases"]["first"]:
        seconds = [number(case[part], 2) for part in (*parts, "total_s")]
        share = number(case["search_mb"] / case["file_mb"], 2)
        rows.append([number(case["rows"]), case["library"], *seconds, number(case["peak_mb"]), share])
    return rows


def lance_searches(result: Result) -> list[Row]:
    """Return what LanceDB's index costs, and what it finds."""
    rows = [["vectors", "made in, s", "on the disk, MB", "1 query, ms", "recall at 10"]]
    for case in result["cases"]["lance"]:
        made = [number(case["build_s"]), number(case["disk_mb"]), number(case["ms"], 1)]
        rows.append([number(case["rows"]), *made, number(case["recall_at_10"], 3)])
    return rows


TABLES: dict[str, tuple[str, Callable[[Result], list[Row]]]] = {  # a table's name: its JSON file, and its rows
    "towers-cpu": ("towers-cpu", towers),
    "towers-cpu-errors": ("towers-cpu", tower_errors),
    "towers-cpu-products": ("towers-cpu", products),
    "towers-gpu": ("towers-gpu", gpu_towers),
    "text-encoding-cpu": ("text-encoding-cpu", text_encoding),
    "zero-shot-cpu": ("zero-shot-cpu", zero_shot),
    "start-cpu": ("start-cpu", start),
    "memory-cpu": ("memory-cpu", memory),
    "images-cpu": ("images-cpu", images),
    "texts-cpu": ("texts-cpu", texts),
    "losses-cpu-compared": ("losses-cpu", losses_compared),
    "losses-cpu-ranks": ("losses-cpu", losses_ranks),
    "losses-cpu-alone": ("losses-cpu", losses_alone),
    "training-cpu": ("training-cpu", training),
    "training-cpu-accuracy": ("training-cpu", training_accuracy),
    "fine-tuning-cpu": ("fine-tuning-cpu", fine_tuning),
    "fine-tuning-cpu-kept": ("fine-tuning-cpu", fine_tuning_kept),
    "conversion-cpu": ("conversion-cpu", conversion),
    "locate-cpu": ("locate-cpu", located),
    "naflex-cpu": ("naflex-cpu", naflex),
    "embedding-job-cpu": ("embedding-job-cpu", embedding_job),
    "embedding-job-cpu-memory": ("embedding-job-cpu", embedding_job_memory),
    "embedding-job-cpu-billion": ("embedding-job-cpu", embedding_job_billion),
}
SEARCH_TABLES: dict[str, tuple[str, Callable[[Result], list[Row]]]] = {  # those of docs/search.md
    "search-cpu": ("search-cpu", searches),
    "search-cpu-first": ("search-cpu", first_searches),
    "search-cpu-lance": ("search-cpu", lance_searches),
}


# Plots: the bars are speeds over the bar that has the length 1.


def speeds(seconds: Result, over: str) -> list[plots.Bar]:
    """Return a bar for each variant, the fastest first."""
    bars = [plots.Bar(name, seconds[over] / value, "twinlens" in name) for name, value in seconds.items()]
    return sorted(bars, key=lambda bar: -bar.value)


def plot_towers(result: Result) -> list[plots.Panel]:
    """Return the image towers with 8 images."""
    return [
        (f"{TOWERS[tower]}, {dtype}", speeds(case["ms"], "transformers, sdpa"))
        for case in result["cases"]
        for tower, dtype, batch in [case["case"].rsplit("-", 2)]
        if batch == "8"
    ]


def plot_gpu_towers(result: Result) -> list[plots.Panel]:
    """Return the image towers with 64 images."""
    return [
        (f"{GPU_TOWERS[tower]}, {batch} images", speeds(case["ms"], "transformers, sdpa"))
        for case in result["cases"]
        for tower, _, batch in [case["case"].rsplit("-", 2)]
        if batch == "64" and "transformers, sdpa" in case["ms"]
    ]


def plot_text_encoding(result: Result) -> list[plots.Panel]:
    """Return all cases."""
    return [
        (f"{TEXT_TOWERS[tower]}, from {source}", speeds(case["ms_each"], "transformers"))
        for case in result["cases"]
        for tower, source in [case["case"].split("-")]
    ]


def plot_zero_shot(result: Result) -> list[plots.Panel]:
    """Return both models."""
    return [
        (f"{ZERO_SHOT[case['case']]}, {case['labels']} labels", speeds(case["ms_each"], "transformers, pipeline"))
        for case in result["cases"]
    ]


def plot_start(result: Result) -> list[plots.Panel]:
    """Return the time of the whole process."""
    totals = {case["library"]: case["total_s"] for case in result["cases"]}
    return [("CLIP B/16, the whole process", speeds(totals, "transformers"))]


def plot_images(result: Result) -> list[plots.Panel]:
    """Return the engines that people choose, and the code beside them."""
    panels = {}
    for case in result["cases"]:
        if case["variant"] != "twinlens, official":
            panels.setdefault(case["case"], {})[case["variant"]] = case["ms_each"]
    return [(name, speeds(times, "transformers")) for name, times in panels.items()]


def plot_texts(result: Result) -> list[plots.Panel]:
    """Return the vocabularies that transformers reads, too."""
    panels: dict[str, dict[str, float]] = {}
    for case in result["cases"]:
        panels.setdefault(case["case"], {})[case["variant"]] = case["us_each"]
    return [(name, speeds(times, "transformers")) for name, times in panels.items() if "transformers" in times]


def plot_naflex(result: Result) -> list[plots.Panel]:
    """Return both dtypes."""
    variants = {"packed": "twinlens, packed", "padded": "twinlens, padded", "transformers": "transformers"}
    return [
        (
            case["case"].rsplit("-", 1)[0],
            speeds({label: case[f"{key}_ms"] for key, label in variants.items()}, "transformers"),
        )
        for case in result["cases"]
    ]


def plot_embedding_job(result: Result) -> list[plots.Panel]:
    """Return both libraries and dtypes."""
    seconds = {case["variant"]: case["seconds"] for case in result["cases"] if case["case"] == "speed"}
    return [("SigLIP B/16, JPEG files of 640x480", speeds(seconds, "transformers, float32"))]


PLOTS: dict[str, tuple[Callable[[Result], list[plots.Panel]], str]] = {  # by JSON file; what the bars are
    "towers-cpu": (plot_towers, "Speed over transformers (sdpa), 8 images"),
    "towers-gpu": (plot_gpu_towers, "Speed over transformers (sdpa)"),
    "text-encoding-cpu": (plot_text_encoding, "Speed over transformers"),
    "zero-shot-cpu": (plot_zero_shot, "Speed over transformers' pipeline with its own model"),
    "start-cpu": (plot_start, "Speed over transformers"),
    "images-cpu": (plot_images, "Speed over transformers"),
    "texts-cpu": (plot_texts, "Speed over transformers"),
    "naflex-cpu": (plot_naflex, "Speed over transformers"),
    "embedding-job-cpu": (plot_embedding_job, "Speed over transformers in float32"),
}


def read_result(stem: str) -> Result | str:
    """Return the results of a JSON file, or in words why there are none."""
    file = RESULTS / f"{stem}.json"
    if not file.exists():
        return "Not measured yet."
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    return result if result["cases"] else f"Not measured: {result['not_measured']['all']}."


def to_markdown(rows: Iterable[Row]) -> str:
    """Return rows, the first of which is the head, as a table with numbers to the right."""
    head, *body = rows
    right = [
        all(re.fullmatch(r"([\d.,]+( s)?|\d+e[+-]\d+|all)?", row[column]) for row in body)
        for column in range(len(head))
    ]
    lines = [head, ["---:" if numbers else "---" for numbers in right], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_table(name: str) -> str:
    """Return a table as the results have it, and below it what was not measured."""
    stem, to_rows = {**TABLES, **SEARCH_TABLES}[name]
    result = read_result(stem)
    if isinstance(result, str):
        return result
    absent = "".join(f"\n\nNot measured: {peer} ({why})." for peer, why in result.get("not_measured", {}).items())
    return to_markdown(to_rows(result)) + (absent if name == stem else "")


def draw_plots() -> dict[Path, str]:
    """Return the plots of all results, by file."""
    drawn = {}
    for stem, (to_panels, title) in PLOTS.items():
        result = read_result(stem)
        if not isinstance(result, str):
            drawn[PICTURES / f"speed-{stem}.svg"] = plots.draw(title, to_panels(result))
    return drawn


def show_plot(stem: str) -> str:
    """Return the line that shows a plot, or nothing where there are no results."""
    result = read_result(stem)
    return "" if isinstance(result, str) else f"![{PLOTS[stem][1]}](pictures/speed-{stem}.svg)\n\n"


def fill(page: str, tables: Iterable[str] = TABLES, plots_of: Iterable[str] = PLOTS) -> str:
    """Return a page with every table and plot as the results have it; each must be there once, and no other."""
    marker = re.compile(r"(<!-- (table|plot): (\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    for kind, known in (("table", tables), ("plot", plots_of)):
        names = [match[2] for match in marker.findall(page) if match[1] == kind]
        if sorted(names) != sorted(known):
            raise ValueError(f"Expected each of the {kind}s {', '.join(known)} once, got {', '.join(names) or 'none'}.")

    def content(match: re.Match[str]) -> str:
        inside = show_plot(match[3]) if match[2] == "plot" else f"{make_table(match[3])}\n\n"
        return f"{match[1]}\n{inside}{match[4]}"

    return marker.sub(content, page)


def main() -> None:
    """Write the tables and plots, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if something differs")
    options = parser.parse_args()
    search_page = fill(SEARCH_PAGE.read_text(encoding="utf-8"), SEARCH_TABLES, ())
    files = {PAGE: fill(PAGE.read_text(encoding="utf-8")), SEARCH_PAGE: search_page, **draw_plots()}
    for file, text in files.items():
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            sys.exit(f"{file} differs from benchmarks/results/. Run python benchmarks/tables.py.")
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
