"""The results of `twinlens evaluate` as tables for people, at most 80 columns wide."""

import sys
from collections.abc import Mapping
from typing import Any

from .terminal import print_line

WIDTH = 80
MOST_SHOWN = 10  # of skipped images, and of the best and worst classes


def print_result(result: Mapping[str, Any]) -> None:
    """Print what was measured, and on standard error which images were left out."""
    print_line(_shorten(f"{result['model']} on {result['data']}"))
    {"classes": _print_classes, "labels": _print_labels, "pairs": _print_pairs}[result["task"]](result)
    if "index" in result:
        print_line(_shorten(f"{_count(result['index']['images'], 'embedding')} from {result['index']['folder']}"))
    if skipped := result["skipped"]:
        noun = "pair" if result["task"] == "pairs" else "image"
        print(f"Skipped {_count(len(skipped), noun)} that cannot be read:", file=sys.stderr)
        for item in skipped[:MOST_SHOWN]:
            print_line(f"  {item['reason']}", error=True)
        if len(skipped) > MOST_SHOWN:
            print(f"  and {len(skipped) - MOST_SHOWN:,} more, which --json or --out lists", file=sys.stderr)


def _print_classes(result: Mapping[str, Any]) -> None:
    print_line(f"{_count(result['images'], 'image')}, {_words_of(result)}")
    if "train_images" in result:
        print_line(_shorten(result["split"]))
    rows = [("zero-shot", result["zero_shot"])]
    if "linear_probe" in result:
        rows.append((f"linear probe, {_count(result['train_images'], 'image')}", result["linear_probe"]))
    columns = [name for name in ("top1", "top5", "mean_class_recall") if name in result["zero_shot"]]
    titles = {"top1": "top-1", "top5": "top-5", "mean_class_recall": "class mean"}
    print(f"{'accuracy':<44}" + "".join(f"{titles[name]:>12}" for name in columns))
    for title, metrics in rows:
        print(f"{title:<44}" + "".join(f"{metrics[name]:>12.1%}" for name in columns))
    for few in result.get("few_shot", ()):
        for name, words in (("linear_probe", "linear probe"), ("examples_and_names", "examples and names")):
            spread, title = few[name], f"{_count(few['shots'], 'image')} a class, {words}"
            deviation = f" ± {100 * spread['std']:.1f}" if few["draws"] > 1 else ""
            print(f"{title:<44}{spread['mean']:>12.1%}{deviation}")
    if "few_shot" in result and result["few_shot"][0]["draws"] > 1:
        print(f"± is the standard deviation of {result['few_shot'][0]['draws']} draws.")


def _print_labels(result: Mapping[str, Any]) -> None:
    print_line(f"{_count(result['images'], 'image')}, {_words_of(result)}")
    print(f"{'mean average precision':<44}{result['mean_average_precision']:>12.1%}")
    ordered = sorted(result["average_precision"].items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= 2 * MOST_SHOWN else [*ordered[:MOST_SHOWN], None, *ordered[-MOST_SHOWN:]]
    for item in shown:
        print_line(f"  {_shorten(item[0], 40):<42}{item[1]:>12.1%}" if item else "  ...")


def _print_pairs(result: Mapping[str, Any]) -> None:
    print(f"{_count(result['images'], 'image')}, {_count(result['captions'], 'caption')}")
    print(f"{'recall':<44}" + "".join(f"{f'at {k}':>12}" for k in (1, 5, 10)))
    for name, title in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        recalls = (result["retrieval"][f"{name}_recall_at_{k}"] for k in (1, 5, 10))
        print(f"{title:<44}" + "".join(f"{recall:>12.1%}" for recall in recalls))
    if shared := result["captions_of_several_images"]:
        rule = "only its own is" if result["own_images_only"] else "each of them is"
        print(f"{_count(shared, 'caption')} of several images: {rule} right.")


def _words_of(result: Mapping[str, Any]) -> str:
    classes, templates = len(result["classes"]), result["templates"]
    said = f'"{templates[0]}"' if len(templates) == 1 else f"{len(templates)} templates"
    return _shorten(f"{classes:,} {'class' if classes == 1 else 'classes'}, {said}", 50)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shorten(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 3]} ... {text[-(width - width // 2 - 2) :]}"
