"""A graph in the runtime that will run it, against the model in PyTorch: the largest error of every output."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modeling import DualEncoderModel
from ..parity.report import FAILED, TerminalTable
from .graphs import Graph
from .inputs import Case, as_tokenized, cases
from .runtimes import Runner

TOLERANCE = 2e-5  # what is measured is below 2e-6, also at the sizes of published checkpoints


@dataclass(frozen=True)
class CaseErrors:
    """The errors of the outputs for one number of images and texts, as `distance` gives them."""

    case: Case
    errors: dict[str, float]


@dataclass(frozen=True)
class GraphCheck:
    """What one file computes, beside what the model does."""

    file: str
    runtime: str
    inputs: tuple[str, ...]
    cases: tuple[CaseErrors, ...]

    @property
    def passed(self) -> bool:
        return all(error <= TOLERANCE for case in self.cases for error in case.errors.values())  # False for NaN

    @property
    def worst(self) -> tuple[str, float]:
        """The output with the largest error in any case, and that error."""
        pairs = [pair for case in self.cases for pair in case.errors.items()]
        return max(pairs, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON; an error that is not finite becomes None."""
        results = [
            {
                **self._sizes(result.case),
                "errors": {name: error if math.isfinite(error) else None for name, error in result.errors.items()},
            }
            for result in self.cases
        ]
        verdict = "pass" if self.passed else "fail"
        return {
            "file": self.file,
            "runtime": self.runtime,
            "verdict": verdict,
            "tolerance": TOLERANCE,
            "cases": results,
        }

    def table(self) -> TerminalTable:
        """Return a table for a terminal: a line for each output, a column for each case."""
        sizes = ([f"{count} {name}" for name, count in self._sizes(result.case).items()] for result in self.cases)
        cells = [["output", "tolerance", *map(", ".join, sizes)]]
        for name in self.cases[0].errors:
            errors = [result.errors[name] for result in self.cases]
            numbers = (f"{error:.1e}{'' if error <= TOLERANCE else FAILED}" for error in errors)
            cells.append([name, f"{TOLERANCE:.0e}", *numbers])
        return TerminalTable(f"{self.file} in {self.runtime}", self.passed, cells)

    def _sizes(self, case: Case) -> dict[str, int]:
        sizes = {}
        if "pixel_values" in self.inputs:
            sizes["images"] = case.images
        if "spatial_shapes" in self.inputs:
            sizes["patches"] = case.patches
        if "input_ids" in self.inputs:
            sizes |= {"texts": case.texts, "tokens": case.length}
        return sizes


class GraphError(ValueError):
    """A graph computes something else than its model; `check` holds every number."""

    def __init__(self, check: GraphCheck) -> None:
        name, error = check.worst
        super().__init__(
            f"{check.file} is wrong: {name} is {error:.1e} from the model in {check.runtime}, the tolerance is "
            f"{TOLERANCE:.0e}. Nothing was written; --no-verify writes it regardless."
        )
        self.check = check


@torch.no_grad()
def check_graph(model: DualEncoderModel, graph: Graph, run: Runner, file: str, runtime: str) -> GraphCheck:
    """Compare what `run` returns with the model, for numbers and lengths that the graph was not traced with."""
    results = []
    for case in cases(model):
        inputs = case.inputs(model, graph.inputs)
        found, expected = run(inputs), expected_outputs(model, inputs)
        scales = dict.fromkeys(("logits_per_image", "logits_per_text"), float(model.logit_scale.exp()))
        errors = {name: distance(found.get(name), expected[name], scales.get(name, 1)) for name in graph.outputs}
        results.append(CaseErrors(case, errors))
    return GraphCheck(file, runtime, graph.inputs, tuple(results))


def expected_outputs(model: DualEncoderModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the methods of the model give, for texts as a tokenizer cuts and pads them."""
    texts = as_tokenized(model, inputs) if "input_ids" in inputs else {}
    outputs = {}
    if texts:
        outputs["text_embeds"] = model.encode_text(**texts)
        outputs["pooler_output"] = model.get_text_features(**texts, return_dict=True).pooler_output
    if "pixel_values" in inputs:
        images = {name: value for name, value in inputs.items() if name not in texts}
        outputs["image_embeds"] = model.encode_image(**images)
        outputs["pooler_output"] = model.get_image_features(**images, return_dict=True).pooler_output
    if len(outputs) == 3:
        logits = model.logits(outputs["image_embeds"], outputs["text_embeds"])
        outputs |= {"logits_per_image": logits, "logits_per_text": logits.t()}
    return outputs


def distance(found: Tensor | None, expected: Tensor, scale: float = 1) -> float:
    """Return the largest error of an output, in units of `scale`, or of its largest value where that is larger.

    So embeddings, which are of length 1, have absolute errors, and logits those of their cosines. It is NaN for no
    output, or one of another shape.
    """
    if found is None or found.shape != expected.shape:
        return math.nan
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=max(1, scale)))
