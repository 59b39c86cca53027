"""Measured proof that a conversion changed nothing: a float32 model against the float64 reference, number by number."""

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import PreTrainedModel

from .._version import __version__
from ..formats.inspection import describe_checkpoint
from .original import original_outputs
from .reference import Reference, reference_forward

if TYPE_CHECKING:
    from rich.table import Table

    from ..formats import Checkpoint

Loader = Callable[[], PreTrainedModel]

SCHEMA_VERSION = 2
BARS = {
    "hidden_states": 3e-5,
    "last_hidden_state": 3e-5,
    "pooler_output": 3e-5,
    "embeds": 5e-6,
    "logits_per_image": 1e-4,
}
SCALED = ("hidden_states", "last_hidden_state", "pooler_output")
RULE = (
    "float32 on CPU. embeds (unit length) and logits_per_image: largest absolute error <= bar. hidden_states, "
    "last_hidden_state and pooler_output: largest scaled error <= bar, where the error at a token is divided by "
    "max(1, the largest magnitude of the reference at this token), because trained towers hold single activations of "
    "1e2 to 1e3 whose float32 spacing alone exceeds the bar. NaN, infinity, a missing output and another shape fail."
)


@dataclass(frozen=True)
class Row:
    """The error of one output, such as `image.hidden_states.3`; errors are NaN where it cannot be compared."""

    name: str
    error: float  # largest absolute error
    scaled_error: float  # largest error as RULE scales it; equals `error` where nothing is scaled
    peak: float  # largest magnitude of the reference

    @property
    def bar(self) -> float:
        return BARS[_quantity(self.name)]

    @property
    def passed(self) -> bool:
        return self.scaled_error <= self.bar  # False for NaN

    @property
    def severity(self) -> float:
        return self.scaled_error / self.bar if math.isfinite(self.scaled_error) else math.inf


@dataclass(frozen=True)
class Comparison:
    """All outputs of `subject` against those of `reference`; `judged` says whether the bars apply."""

    subject: str
    reference: str
    rows: tuple[Row, ...]
    judged: bool = True

    @property
    def passed(self) -> bool:
        return not self.judged or all(row.passed for row in self.rows)

    @property
    def summary(self) -> dict[str, Row]:
        """The worst row of each output, all layers of a tower in one: {"image.hidden_states": row, ...}."""

        def output(row: Row) -> str:
            return row.name.rstrip("0123456789").rstrip(".")

        return {name: max(rows, key=lambda row: row.severity) for name, rows in groupby(self.rows, output)}


@dataclass(frozen=True)
class Certificate:
    """What `parity.json` holds: source, inputs, every error, the bars, the verdict and the versions."""

    source: dict[str, Any]
    inputs: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    @property
    def worst(self) -> tuple[Comparison, Row]:
        """The row nearest to its bar or furthest beyond it."""
        rows = ((comparison, row) for comparison in self.comparisons if comparison.judged for row in comparison.rows)
        return max(rows, key=lambda pair: pair[1].severity)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a number that is not finite becomes None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": "pass" if self.passed else "fail",
            "source": self.source,
            "inputs": self.inputs,
            "rule": RULE,
            "bars": BARS,
            "comparisons": [
                {
                    "subject": comparison.subject,
                    "reference": comparison.reference,
                    "judged": comparison.judged,
                    "verdict": ("pass" if comparison.passed else "fail") if comparison.judged else None,
                    "rows": [_row_to_dict(row, comparison.judged) for row in comparison.rows],
                }
                for comparison in self.comparisons
            ],
            "notes": list(self.notes),
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def table(self) -> "Table":
        """For a terminal: one line an output (its worst layer), one column a comparison."""
        from rich.table import Table

        verdict = "[green]pass[/green]" if self.passed else "[red]FAIL[/red]"
        table = Table(title=f"Parity of {self.source['files'][0]['name']}: {verdict}", title_justify="left")
        header, *lines = self._cells()
        for index, name in enumerate(header):
            table.add_column(name.replace(" / ", "\n/ "), justify="left" if index == 0 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*(f"[red]{cell}[/red]" if cell.endswith("FAIL") else cell for cell in line))
        return table

    def markdown(self) -> str:
        """The same table in Markdown, for the model card."""
        header, *lines = self._cells()
        rule = ["---", *["---:"] * (len(header) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))

    def _cells(self) -> list[list[str]]:
        summaries = [(comparison.judged, comparison.summary) for comparison in self.comparisons]
        header = ["output", "bar", *(f"{item.subject} / {item.reference}" for item in self.comparisons)]
        lines = []
        for name, row in summaries[0][1].items():
            cells = [
                f"{summary[name].scaled_error:.1e}" + (" FAIL" if judged and not summary[name].passed else "")
                if name in summary
                else "-"  # official code gives no hidden states
                for judged, summary in summaries
            ]
            lines.append([name, f"{row.bar:.0e}", *cells])
        return [header, *lines]


def certify(
    checkpoint: "Checkpoint",
    model: PreTrainedModel | Loader,
    *,
    native: Loader | None = None,
    rounded: Loader | None = None,
    photograph: npt.NDArray[np.float32] | None = None,
    original: bool = False,
    seed: int = 0,
    notes: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Certificate:
    """Compare a float32 CPU model with the float64 reference run on the official weights of `checkpoint`.

    `rounded` is our model with the weights as stored, where storing rounded them: its distance from the reference is
    reported without a verdict. `native` is transformers' own model with the weights as stored. `photograph` is a real
    picture, (1, channels, height, width) as the processor makes it, beside the generated ones. `original` also runs
    the official implementation, see `original_outputs`. Models that are given as functions are alive one at a time.
    """
    pixel_values, input_ids = probe_inputs(checkpoint.config, seed)
    if photograph is not None:
        pixel_values = np.concatenate([pixel_values, photograph.astype(np.float32)])
    progress("twinlens")
    ours = _model_outputs(model, pixel_values, input_ids)
    stored = ours if rounded is None else _model_outputs(rounded, pixel_values, input_ids)
    if native is not None:
        progress("transformers")
        native_outputs = _model_outputs(native, pixel_values, input_ids)
    progress("float64 reference")  # last: the memory that it gives back stays with the process
    reference = reference_forward(
        checkpoint.tensors,
        pixel_values,
        input_ids,
        beside=checkpoint.layout.sidecar_json,
        vision_activation=checkpoint.options.get("vision_activation"),
        vision_heads=checkpoint.options.get("vision_heads"),
    )
    expected = _reference_outputs(reference)
    comparisons = [Comparison("twinlens", "float64", _rows(ours, expected))]
    if rounded is not None:
        rows = _rows(stored, expected)
        comparisons.append(Comparison("twinlens, rounded weights", "float64", rows, judged=False))
    if native is not None:
        comparisons.append(Comparison("twinlens", "transformers", _rows(stored, native_outputs)))
    if original:
        progress("the original code")
        name, tensors = original_outputs(checkpoint, torch.from_numpy(pixel_values), torch.from_numpy(input_ids))
        found = {output: tensor.double().numpy() for output, tensor in tensors.items()}
        finals = {output: ours[output] for output in found}
        comparisons.append(Comparison("twinlens", name, _rows(finals, found)))
        comparisons.append(Comparison(name, "float64", _rows(found, {output: expected[output] for output in found})))
    return Certificate(
        source=describe_checkpoint(checkpoint),
        inputs={
            "seed": seed,
            "images": len(pixel_values),
            "texts": len(input_ids),
            "photograph": None if photograph is None else "astronaut of scikit-image, the last image",
        },
        comparisons=tuple(comparisons),
        versions={
            "twinlens": __version__,
            **{library.__name__: str(library.__version__) for library in (torch, transformers, np)},
            "python": platform.python_version(),
        },
        notes=notes,
    )


def probe_inputs(config: Any, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three images (noise, waves, blank; -1..1) and four texts (full length, short, one token, ids after the end).

    For an image tower alone, no texts.
    """
    rng = np.random.default_rng(seed)
    size, text = getattr(config, "vision_config", config).image_size, getattr(config, "text_config", None)
    rows, columns = np.mgrid[0:size, 0:size] / size
    frequency, phase = rng.uniform(-20, 20, (2, 3, 1, 1)), rng.uniform(0, 6, (3, 1, 1))
    waves = np.sin(frequency[0] * rows + frequency[1] * columns + phase)
    # The blank image leaves biases and positions alone, whose small variance lets a wrong epsilon show.
    images = np.stack([rng.uniform(-1, 1, waves.shape), waves, np.zeros(waves.shape)]).astype(np.float32)

    if text is None:
        return images, np.zeros((0, 1), np.int64)
    length, vocabulary = text.max_position_embeddings, text.vocab_size
    if text.pooling == "first_eos":
        # OpenAI's start and end are the two highest ids, and the end is found by argmax. Taking both from the size of
        # the vocabulary, not from the configuration, lets a wrong `eos_token_id` show.
        ids = rng.integers(1, vocabulary - 2, (4, length))
        ids[:, 0] = vocabulary - 2
        ids[range(4), [length - 1, length // 2, 2, length // 2]] = vocabulary - 1
        ids[1, length // 2 + 1 :] = 0
        ids[2, 3:] = vocabulary - 1  # hub folders pad with the end of text
    else:
        ids = rng.integers(2, vocabulary, (4, length))
        ids[1, length // 2 :] = ids[2, 1:] = text.pad_token_id or 0
    return images, ids


def _reference_outputs(reference: Reference) -> dict[str, npt.NDArray[np.float64]]:
    outputs: dict[str, Any] = {}
    for name, tower in (("image", reference.image), ("text", reference.text)):
        if tower is None:
            return outputs
        outputs |= {f"{name}.hidden_states.{index}": state for index, state in enumerate(tower.hidden_states)}
        outputs[f"{name}.last_hidden_state"] = tower.last_hidden_state
        outputs[f"{name}.pooler_output"] = tower.pooler_output
        outputs[f"{name}.embeds"] = tower.embeds
    return outputs | {"logits_per_image": reference.logits_per_image}


def _model_outputs(
    source: PreTrainedModel | Loader, pixel_values: npt.NDArray[np.float32], input_ids: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float32]]:
    model = source if isinstance(source, PreTrainedModel) else source()
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"The bars hold for float32 on the CPU. Got a model in {model.dtype} on {model.device}.")
    model.eval()
    inputs = {"pixel_values": torch.from_numpy(pixel_values)}
    if len(input_ids):
        inputs["input_ids"] = torch.from_numpy(input_ids)
    with torch.inference_mode():
        result = model(**inputs, output_hidden_states=True)
    outputs: dict[str, Any] = {}
    if len(input_ids):
        towers = {"image": result.vision_model_output, "text": result.text_model_output}
        outputs["logits_per_image"] = result.logits_per_image
        embeds = {name: result[f"{name}_embeds"] for name in towers}
    else:
        towers, embeds = {"image": result}, {"image": torch.nn.functional.normalize(result.pooler_output, dim=-1)}
    for name, tower in towers.items():
        outputs |= {f"{name}.hidden_states.{index}": state for index, state in enumerate(tower.hidden_states)}
        outputs[f"{name}.last_hidden_state"] = tower.last_hidden_state
        outputs[f"{name}.pooler_output"] = tower.pooler_output
        outputs[f"{name}.embeds"] = embeds[name]
    return {name: output.numpy() for name, output in outputs.items()}


def _rows(outputs: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]]) -> tuple[Row, ...]:
    rows = []
    for name, stored in expected.items():
        reference, output = stored.astype(np.float64), outputs.get(name)
        magnitude = np.abs(reference).max(-1, keepdims=True)  # of each token
        peak = float(magnitude.max())
        if output is None or output.shape != reference.shape or not np.isfinite(output).all():
            rows.append(Row(name, math.nan, math.nan, peak))
            continue
        error = np.abs(output - reference)
        scale = np.maximum(1, magnitude) if _quantity(name) in SCALED else 1
        rows.append(Row(name, float(error.max()), float((error / scale).max()), peak))
    return tuple(rows)


def _quantity(name: str) -> str:
    """The key of BARS in `image.hidden_states.3` and the like."""
    return next(part for part in name.split(".") if part in BARS)


def _row_to_dict(row: Row, judged: bool) -> dict[str, Any]:
    numbers = {"error": row.error, "scaled_error": row.scaled_error, "peak": row.peak}
    return {
        "name": row.name,
        **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
        **({"bar": row.bar, "passed": row.passed} if judged else {}),
    }
