"""The tables of docs/benchmarks.md, written from the JSON files in benchmarks/results/.

    python benchmarks/tables.py [--check]

A table replaces what stands between `<!-- table: NAME -->` and `<!-- end -->`. With `--check` nothing is written, and a
page that differs is an error. Needs nothing but Python.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
PAGE = PROJECT / "docs" / "benchmarks.md"

Result = dict[str, Any]  # a JSON file: "environment" and "cases"
Row = list[str]  # the cells of a row


def number(value: float, decimals: int = 0) -> str:
    """Return a number with thousands separators; halves of what the JSON says are rounded up."""
    exact = Decimal(str(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{exact:,}"


def by_case(result: Result, *keys: str) -> dict[tuple[Any, ...], Result]:
    """Return the cases by the values of `keys`."""
    return {tuple(case[key] for key in keys): case for case in result["cases"]}


def forward(result: Result) -> list[Row]:
    """Return time and memory of image towers, as ratios of twinlens over transformers."""
    towers = {"siglip-b16": "SigLIP B/16-224", "clip-b32": "CLIP B/32"}
    ratios = [f"{what}, {attention}" for what in ("time", "memory") for attention in ("sdpa", "eager")]
    rows = [["image tower", "dtype", "batch", "ms (sdpa)", *ratios]]
    cases = by_case(result, "case", "attention")
    for name in dict.fromkeys(case for case, _ in cases):
        tower, dtype, batch = name.rsplit("-", 2)
        sdpa, eager = cases[name, "sdpa"], cases[name, "eager"]
        ratios = [number(case[f"{what}_ratio"], 2) for what in ("time", "memory") for case in (sdpa, eager)]
        rows.append([towers[tower], dtype, batch, number(sdpa["twinlens_ms"]), *ratios])
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


def training(result: Result) -> list[Row]:
    """Return the memory of an update, with and without gradient caching."""
    rows = [["pairs", "embedded at a time", "memory, MB", "of which pixels, MB"]]
    for case in result["cases"]:
        memory = number(case["peak_mb"]), number(case["of_which_inputs_mb"])
        rows.append([str(case["pairs"]), str(case["at_a_time"] or "all"), *memory])
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


def naflex(result: Result) -> list[Row]:
    """Return milliseconds of a batch of images of many aspect ratios, without padding and with it."""
    rows = [["dtype", "padding, %", "packed, ms", "padded, ms", "transformers, ms", "speed over padded"]]
    for case in result["cases"]:
        times = [number(case[f"{variant}_ms"]) for variant in ("packed", "padded", "transformers")]
        padding, speed = number(100 * case["padding"]), number(case["speed_over_padded"], 2)
        rows.append([case["case"].rsplit("-", 1)[0], padding, *times, speed])
    return rows


TABLES: dict[str, tuple[str, Callable[[Result], list[Row]]]] = {  # a table's name: its JSON file, and its rows
    "forward-cpu": ("forward-cpu", forward),
    "images-cpu": ("images-cpu", images),
    "texts-cpu": ("texts-cpu", texts),
    "losses-cpu-compared": ("losses-cpu", losses_compared),
    "losses-cpu-ranks": ("losses-cpu", losses_ranks),
    "losses-cpu-alone": ("losses-cpu", losses_alone),
    "training-cpu": ("training-cpu", training),
    "conversion-cpu": ("conversion-cpu", conversion),
    "locate-cpu": ("locate-cpu", located),
    "naflex-cpu": ("naflex-cpu", naflex),
}


def to_markdown(rows: Iterable[Row]) -> str:
    """Return rows, the first of which is the head, as a table with numbers to the right."""
    head, *body = rows
    right = [all(re.fullmatch(r"([\d.,]+( s)?|all)?", row[column]) for row in body) for column in range(len(head))]
    lines = [head, ["---:" if numbers else "---" for numbers in right], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_table(name: str) -> str:
    """Return a table as the results have it."""
    stem, to_rows = TABLES[name]
    return to_markdown(to_rows(json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))))


def fill(page: str) -> str:
    """Return a page with every table as the results have it; each must be there once, and no other."""
    marker = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    names = [match[1] for match in marker.findall(page)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"Expected each of the tables {', '.join(TABLES)} once, got {', '.join(names) or 'none'}.")
    return marker.sub(lambda match: f"{match[1]}\n{make_table(match[2])}\n\n{match[3]}", page)


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the page differs")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    filled = fill(page)
    if filled == page:
        return
    if options.check:
        sys.exit(f"{PAGE} differs from benchmarks/results/. Run python benchmarks/tables.py.")
    PAGE.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
