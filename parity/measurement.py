"""The measurement behind a certificate: every subject computes its outputs from the same inputs; pairs are compared."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import PreTrainedModel

from .._version import __version__
from ..catalogue.download import Progress
from ..configuration import DualEncoderConfig, Siglip2VisionConfig, TowerConfig, is_single_tower
from ..formats import Checkpoint
from ..formats.inspection import describe_checkpoint
from ..modeling import pooling
from .certificate import SCALED_OUTPUTS, Certificate, Comparison, OutputError, PreprocessingCheck, output_kind
from .reference import reference_forward

FLOAT64 = "float64"  # the name of the float64 reference in a certificate

Outputs = Mapping[str, npt.NDArray[Any]]  # by names such as `image.hidden_states.3` and `logits_per_image`
Select = Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]  # the part of an output of this name that is compared


Images = Mapping[str, npt.NDArray[Any]]  # the inputs of an image tower by their names, `pixel_values` among them


class Inputs(NamedTuple):
    """The inputs from which every subject computes its outputs."""

    images: Images
    input_ids: npt.NDArray[np.int64]  # (texts, length); no texts for an image tower alone


@dataclass(frozen=True, eq=False)
class Subject:
    """A way to compute outputs: a model of twinlens or transformers, the official code, or the float64 reference."""

    name: str  # in the certificate
    compute: Callable[[Inputs], Outputs]  # loads the weights and lets go of them, so that one model at a time is alive
    final_only: bool = False  # its outputs are embeddings and logits, without hidden states
    pools_start: bool = False  # of a text without an end, which is left out of its comparisons
    misplaces_columns: bool = False  # gives grids of a single column wrong positions: left out of its comparisons


class Pairing(NamedTuple):
    """Two subjects to compare. Without `checked` the errors are reported, and the tolerances do not apply."""

    subject: Subject
    reference: Subject
    checked: bool = True


def certify(checkpoint: Checkpoint, model: PreTrainedModel) -> Certificate:
    """Compare a float32 model on the CPU with the float64 reference run on the official weights of `checkpoint`."""
    ours = model_subject("twinlens", lambda: model)
    return measure(checkpoint, [Pairing(ours, reference_subject(checkpoint))])


def measure(
    checkpoint: Checkpoint,
    pairings: Sequence[Pairing],
    *,
    photograph: Images | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
    preprocessing: PreprocessingCheck | None = None,
    progress: Progress = lambda step: None,
) -> Certificate:
    """Compute the outputs of every subject once, compare them pair by pair, and return the certificate.

    The inputs are generated from `seed`; `photograph`, as the processor makes it, is one more image.
    """
    inputs = generate_inputs(checkpoint.config, seed)
    if photograph is not None:
        images = {
            name: np.concatenate([value, photograph[name].astype(value.dtype)]) for name, value in inputs.images.items()
        }
        inputs = inputs._replace(images=images)
    subjects = dict.fromkeys(subject for pairing in pairings for subject in pairing[:2])
    grids = inputs.images.get("spatial_shapes")
    outputs: dict[Subject, Outputs] = {}
    # The float64 reference runs last: the process keeps the memory that it frees.
    for subject in sorted(subjects, key=lambda subject: subject.name == FLOAT64):
        progress(f"running {subject.name}")
        outputs[subject] = subject.compute(inputs)
    return Certificate(
        source=describe_checkpoint(checkpoint),
        inputs={
            "seed": seed,
            "images": len(inputs.images["pixel_values"]),
            "texts": len(inputs.input_ids),
            "photograph": None if photograph is None else "twinlens/catalogue/assets/cat.jpg, the last image",
            **({} if grids is None else {"grids": grids.tolist()}),
        },
        comparisons=tuple(
            Comparison(
                subject.name,
                reference.name,
                compare(
                    outputs[subject],
                    outputs[reference],
                    final_only=subject.final_only,
                    select=_comparable(checkpoint.config, inputs, subject, reference),
                ),
                checked,
            )
            for subject, reference, checked in pairings
        ),
        versions={
            "twinlens": __version__,
            **{library.__name__: str(library.__version__) for library in (torch, transformers, np)},
            "python": platform.python_version(),
        },
        notes=notes,
        preprocessing=preprocessing,
    )


def compare(
    outputs: Outputs,
    expected: Outputs,
    *,
    final_only: bool = False,
    select: Select = lambda name, output: output,
) -> tuple[OutputError, ...]:
    """Return the error of every expected output; with `final_only`, those that `outputs` lacks are left out.

    `select` takes the name of an output and returns the part of the output that is compared.
    """
    errors = []
    for name, stored in expected.items():
        output = outputs.get(name)
        if output is None and final_only:
            continue
        reference = select(name, stored).astype(np.float64)
        token_max = np.abs(reference).max(-1, keepdims=True)  # shape = [..., length, 1]
        reference_max = float(token_max.max())
        output = None if output is None or output.shape != stored.shape else select(name, output)
        if output is None or not np.isfinite(output).all():
            errors.append(OutputError(name, math.nan, math.nan, reference_max))
            continue
        error = np.abs(output - reference)
        scale = np.maximum(1, token_max) if output_kind(name) in SCALED_OUTPUTS else 1
        errors.append(OutputError(name, float(error.max()), float((error / scale).max()), reference_max))
    return tuple(errors)


def generate_inputs(config: DualEncoderConfig | TowerConfig, seed: int) -> Inputs:
    """Return images of -1..1, the last of them blank, and some texts, none for an image tower alone.

    The images are noise and waves, and for NaFlex noise on grids of all kinds. The texts of CLIP are of full length,
    short, of one token, with added tokens and ids after the end, without the highest id, and without an end.
    """
    rng = np.random.default_rng(seed)
    vision, text = (config, None) if is_single_tower(config) else (config.vision_config, config.text_config)
    images = _patches(vision, rng) if vision.flexible_size else _squares(vision.image_size, rng)
    if text is None:
        return Inputs(images, np.zeros((0, 1), np.int64))
    length, vocabulary = text.max_position_embeddings, text.vocab_size
    if text.pooling == "first_eos":
        # A wrong `eos_token_id` shows: in the fourth text the highest id of the vocabulary comes before the end, in the
        # fifth the highest id is neither the vocabulary's nor the first.
        end = vocabulary - 1 if text.eos_token_id is None or text.ends_at_highest_id else text.eos_token_id
        ids = rng.integers(1, vocabulary - 2, (6, length))
        ids[ids == end] = (end - 1) or 2
        ids[[0, 1, 2, 3, 5], 0] = vocabulary - 2 if end != vocabulary - 2 else vocabulary - 1
        ids[3, 1], ids[4, length // 2] = vocabulary - 1, vocabulary - 2
        ids[range(4), [length - 1, length // 2, 2, length // 2]] = end
        ids[1, length // 2 + 1 :] = 0
        ids[2, 3:] = end  # hub folders pad with the end of text
    else:
        ids = rng.integers(2, vocabulary, (4, length))
        ids[0, :2] = vocabulary - 2, vocabulary - 1
        ids[1, length // 2 :] = ids[2, 1:] = text.pad_token_id or 0
    return Inputs(images, ids)


def _squares(size: int, rng: np.random.Generator) -> Images:
    """Return noise, waves and a blank image; this leaves biases alone, whose small variance shows a wrong epsilon."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    frequency, phase = rng.uniform(-20, 20, (2, 3, 1, 1)), rng.uniform(0, 6, (3, 1, 1))
    waves = np.sin(frequency[0] * rows + frequency[1] * columns + phase)
    images = np.stack([rng.uniform(-1, 1, waves.shape), waves, np.zeros(waves.shape)])
    return {"pixel_values": images.astype(np.float32)}


def _patches(vision: Siglip2VisionConfig, rng: np.random.Generator) -> Images:
    """Return noise and a blank image as patches, on grids of all kinds, and large numbers for the padding behind them.

    The official code takes grids of at most 64 patches a side, or of more where the table of positions has more.
    """
    most, side = vision.num_patches, vision.grid_size
    longest = min(most, max(side, 64))
    wide, tall = (max(1, side // 2), 2 * side), (2 * side, max(1, side // 2))
    all_grids = [(side, side), wide, (1, longest), (longest, 1), (max(1, side - 1), side + 1), (1, 1), tall]
    grids = np.array([grid for grid in all_grids if math.prod(grid) <= most])
    mask = np.arange(most) < grids.prod(1)[:, None]
    values = rng.uniform(-1, 1, (*mask.shape, vision.num_channels * vision.patch_size**2))
    values[-1] = 0
    values = np.where(mask[..., None], values, rng.uniform(-100, 100, values.shape))
    return {
        "pixel_values": values.astype(np.float32),
        "pixel_attention_mask": mask.astype(np.int32),
        "spatial_shapes": grids,
    }


def _texts_without_end(config: DualEncoderConfig | TowerConfig) -> int:
    """Return how many of the last texts of `generate_inputs` have no end."""
    if is_single_tower(config) or config.text_config.pooling != "first_eos":
        return 0
    return 1 if config.text_config.ends_at_highest_id else 2


def _comparable(
    config: DualEncoderConfig | TowerConfig, inputs: Inputs, subject: Subject, reference: Subject
) -> Select:
    """Return what selects the images and texts that two subjects both compute, and of patches those before padding."""
    images: Any = slice(None)
    texts = slice(None)
    if subject.pools_start or reference.pools_start:
        texts = slice(len(inputs.input_ids) - _texts_without_end(config))
    mask, grids = (inputs.images.get(name) for name in ("pixel_attention_mask", "spatial_shapes"))
    if grids is not None and (subject.misplaces_columns or reference.misplaces_columns):
        images = (grids[:, 1] > 1) | (grids[:, 0] == 1)

    def select(name: str, output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name.startswith("text."):
            return output[texts]
        if name == "logits_per_image":
            return output[images][:, texts]
        if mask is not None and output.ndim == 3:
            return output[images][mask[images] == 1]
        return output[images]

    return select


def model_subject(
    name: str, load: Callable[[], PreTrainedModel], *, pools_start: bool = False, misplaces_columns: bool = False
) -> Subject:
    """Return a model of twinlens or transformers as a subject. `load` must return it in float32 on the CPU."""
    return Subject(
        name,
        lambda inputs: _model_outputs(load(), inputs),
        pools_start=pools_start,
        misplaces_columns=misplaces_columns,
    )


def reference_subject(checkpoint: Checkpoint) -> Subject:
    """Return the float64 reference on the official weights of a checkpoint."""

    def compute(inputs: Inputs) -> Outputs:
        reference = reference_forward(
            checkpoint.tensors,
            inputs.images["pixel_values"],
            inputs.input_ids,
            spatial_shapes=inputs.images.get("spatial_shapes"),
            sidecar_json=checkpoint.layout.sidecar_json,
            vision_activation=checkpoint.options.get("vision_activation"),
            vision_heads=checkpoint.options.get("vision_heads"),
            eos_token_id=checkpoint.options.get("eos_token_id"),
        )
        outputs = _tower_outputs("image", reference.image, reference.image.embeds)
        if reference.text is not None and reference.logits_per_image is not None:
            outputs |= _tower_outputs("text", reference.text, reference.text.embeds)
            outputs["logits_per_image"] = reference.logits_per_image
        return outputs

    return Subject(FLOAT64, compute)


def _model_outputs(model: PreTrainedModel, inputs: Inputs) -> Outputs:
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"The tolerances hold for float32 on the CPU. Got a model in {model.dtype} on {model.device}.")
    model.eval()
    images = {name: torch.from_numpy(value) for name, value in inputs.images.items()}
    with torch.inference_mode(), _without_warnings():
        if len(inputs.input_ids) == 0:
            image = model(**images, output_hidden_states=True)
            return _tower_outputs("image", image, torch.nn.functional.normalize(image.pooler_output, dim=-1))
        result = model(**images, input_ids=torch.from_numpy(inputs.input_ids), output_hidden_states=True)
    return {
        **_tower_outputs("image", result.vision_model_output, result.image_embeds),
        **_tower_outputs("text", result.text_model_output, result.text_embeds),
        "logits_per_image": result.logits_per_image.numpy(),
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep our models from warning of the text without an end, which is meant."""
    disabled, pooling.logger.disabled = pooling.logger.disabled, True
    try:
        yield
    finally:
        pooling.logger.disabled = disabled


def _tower_outputs(name: str, tower: Any, embeds: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
    """Name the outputs of a tower, which are transformers' or a `TowerReference`."""
    outputs = {
        **{f"hidden_states.{index}": state for index, state in enumerate(tower.hidden_states)},
        "last_hidden_state": tower.last_hidden_state,
        "pooler_output": tower.pooler_output,
        "embeds": embeds,
    }
    return {f"{name}.{output}": np.asarray(value) for output, value in outputs.items()}
