"""The certificate of a conversion, which `parity.json` holds: every measured error, the tolerances and the verdict."""

import json
import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .report import FAILED, TerminalTable, markdown_table

SCHEMA_VERSION = 3
TOLERANCES = {
    "hidden_states": 3e-5,
    "last_hidden_state": 3e-5,
    "pooler_output": 3e-5,
    "embeds": 5e-6,
    "logits_per_image": 1e-4,
}
RELATIVE_TOLERANCE = 1e-5
PIXEL_TOLERANCE = 1e-5  # a level of 0..255 is 1.4e-2 or more
SCALED_OUTPUTS = ("hidden_states", "last_hidden_state", "pooler_output")
RULE = (
    "float32 on CPU. embeds (unit length) and logits_per_image: largest absolute error <= tolerance. hidden_states, "
    "last_hidden_state and pooler_output: largest scaled error <= tolerance, where the error at a token is divided by "
    "max(1, the largest magnitude of the reference at this token), because trained towers hold single activations of "
    "1e2 to 1e3 whose float32 spacing alone exceeds the tolerance; at the image tower of a ResNet it is divided by the "
    "largest magnitude of the reference, and the tolerance is 1e-5. NaN, infinity, a missing output and another shape "
    "fail."
)


@dataclass(frozen=True)
class OutputError:
    """The error of one output, such as `image.hidden_states.3`; errors are NaN where it cannot be compared."""

    name: str
    error: float  # largest absolute error
    scaled_error: float  # largest error as RULE scales it; equals `error` where nothing is scaled
    reference_max: float  # largest magnitude of the reference
    relative: bool = False  # scaled by `reference_max`, as the outputs of a ResNet

    @property
    def tolerance(self) -> float:
        return RELATIVE_TOLERANCE if self.relative else TOLERANCES[output_kind(self.name)]

    @property
    def passed(self) -> bool:
        return self.scaled_error <= self.tolerance  # False for NaN

    @property
    def ratio_to_tolerance(self) -> float:
        """The scaled error over the tolerance: at most 1 where the output passed; infinite without a comparison."""
        return self.scaled_error / self.tolerance if math.isfinite(self.scaled_error) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers; one that is not finite becomes None."""
        numbers = {"error": self.error, "scaled_error": self.scaled_error, "reference_max": self.reference_max}
        return {"name": self.name, **{key: value if math.isfinite(value) else None for key, value in numbers.items()}}


@dataclass(frozen=True)
class Comparison:
    """The errors of all outputs of `subject` against those of `reference`."""

    subject: str
    reference: str
    outputs: tuple[OutputError, ...]
    checked: bool = True  # False: the errors are reported, and the tolerances do not apply

    @property
    def passed(self) -> bool:
        return not self.checked or all(output.passed for output in self.outputs)

    @property
    def worst_layers(self) -> dict[str, OutputError]:
        """The largest error of each kind of output, such as {"image.hidden_states": the worst of all layers}."""

        def without_layer(output: OutputError) -> str:
            return output.name.rstrip("0123456789").rstrip(".")

        return {
            name: max(outputs, key=lambda output: output.ratio_to_tolerance)
            for name, outputs in groupby(self.outputs, without_layer)
        }

    def to_dict(self) -> dict[str, Any]:
        outputs = [output.to_dict() for output in self.outputs]
        if self.checked:
            for entry, output in zip(outputs, self.outputs, strict=True):
                entry |= {"tolerance": output.tolerance, "passed": output.passed}
        return {
            "subject": self.subject,
            "reference": self.reference,
            "checked": self.checked,
            "verdict": _verdict(self.passed) if self.checked else None,
            "outputs": outputs,
        }


@dataclass(frozen=True)
class InputCheck:
    """The pixels of some pictures, or the ids of some texts, of the written processor against a reference."""

    reference: str
    count: int  # of pictures or texts
    error: float  # the largest distance of pixels, NaN where shapes differ; 0 for ids
    names: tuple[str, ...]  # the picture with the largest distance; the texts whose ids differ

    @property
    def equal(self) -> bool:
        return not self.names


@dataclass(frozen=True)
class PreprocessingCheck:
    """The processor of a folder against what its source states; None for what there is nothing to compare."""

    images: InputCheck | None
    texts: InputCheck | None

    @property
    def passed(self) -> bool:
        pixels = self.images is None or self.images.error <= PIXEL_TOLERANCE  # False for NaN
        return pixels and (self.texts is None or self.texts.equal)

    def to_dict(self) -> dict[str, Any]:
        images, texts = self.images, self.texts
        return {
            "verdict": _verdict(self.passed),
            "images": images
            and {
                "reference": images.reference,
                "count": images.count,
                "error": images.error if math.isfinite(images.error) else None,
                "worst": images.names[0],
                "tolerance": PIXEL_TOLERANCE,
            },
            "texts": texts
            and {"reference": texts.reference, "count": texts.count, "equal": texts.equal, "different": [*texts.names]},
        }

    def describe(self) -> list[str]:
        """Return a sentence for pixels and one for ids."""
        sentences = []
        if images := self.images:
            distance = f"within {images.error:.1e} of" if math.isfinite(images.error) else "of another shape than"
            distance = "equal to" if images.error == 0 else distance
            passed = images.error <= PIXEL_TOLERANCE
            failed = "" if passed else f" ({images.names[0]}; the tolerance is {PIXEL_TOLERANCE:.0e})"
            sentences.append(f"Pixels of {images.count} pictures: {distance} {images.reference}{failed}.")
        if texts := self.texts:
            result = "equal to" if texts.equal else f"other for {', '.join(texts.names)} than"
            sentences.append(f"Ids of {texts.count} texts: {result} {texts.reference}.")
        return sentences


@dataclass(frozen=True)
class Certificate:
    """The result of measuring one conversion."""

    source: dict[str, Any]  # the result of `describe_checkpoint`
    inputs: dict[str, Any]  # seed, numbers of images and texts, photograph
    comparisons: tuple[Comparison, ...]
    versions: dict[str, str]  # library -> version
    notes: tuple[str, ...] = ()
    preprocessing: PreprocessingCheck | None = None  # None for a model without its folder
    files: tuple[dict[str, Any], ...] = ()  # those of the folder that were measured: name, bytes, sha256

    @property
    def passed(self) -> bool:
        processor = self.preprocessing is None or self.preprocessing.passed
        return processor and all(comparison.passed for comparison in self.comparisons)

    @property
    def worst(self) -> tuple[Comparison, OutputError]:
        """The checked output whose error is the largest in proportion to its tolerance."""
        checked = (comparison for comparison in self.comparisons if comparison.checked)
        pairs = ((comparison, output) for comparison in checked for output in comparison.outputs)
        return max(pairs, key=lambda pair: pair[1].ratio_to_tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return what `parity.json` holds, ready for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": _verdict(self.passed),
            "source": self.source,
            "files": list(self.files),
            "inputs": self.inputs,
            "rule": RULE,
            "tolerances": TOLERANCES,
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "notes": list(self.notes),
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def table(self) -> TerminalTable:
        """Return a table for a terminal: one line per kind of output (its worst layer), one column per comparison."""
        return TerminalTable(f"Parity of {self.source['files'][0]['name']}", self.passed, self._cells())

    def markdown(self) -> str:
        """Return the same table in Markdown, for the model card."""
        return markdown_table(self._cells())

    def sentences(self) -> list[str]:
        """Return a sentence for the pixels that were compared and one for the ids."""
        return self.preprocessing.describe() if self.preprocessing else []

    def _cells(self) -> list[list[str]]:
        """Return the header and the lines of the table. The first comparison has every output."""
        columns = (
            f"{comparison.subject} / {comparison.reference}{'' if comparison.checked else ', not checked'}"
            for comparison in self.comparisons
        )
        cells = [["output", "tolerance", *columns]]
        errors = [comparison.worst_layers for comparison in self.comparisons]
        for name, first in errors[0].items():
            line = [name, f"{first.tolerance:.0e}"]
            for comparison, outputs in zip(self.comparisons, errors, strict=True):
                if name not in outputs:
                    line.append("-")  # official code returns no hidden states
                    continue
                failed = comparison.checked and not outputs[name].passed
                line.append(f"{outputs[name].scaled_error:.1e}{FAILED if failed else ''}")
            cells.append(line)
        return cells


def output_kind(name: str) -> str:
    """Return the key of TOLERANCES in a name such as `image.hidden_states.3`."""
    return next(part for part in name.split(".") if part in TOLERANCES)


def _verdict(passed: bool) -> str:
    return "pass" if passed else "fail"
