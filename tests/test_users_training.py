"""Losses and training: each test fails with transformers' class and passes with ours."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import families, two_processes
from helpers.differences import SILENT, difference, same
from helpers.processes import finish, start

import twinlens
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments


def pairs(family: str, count: int = 3) -> dict[str, torch.Tensor]:
    return {"pixel_values": families.pixels(count), "input_ids": families.token_ids(family, count)}


# --- losses -----------------------------------------------------------------------------------------------------------


@difference(
    "losses",
    "training with `return_loss=True`",
    "makes and returns (batch, batch) logits",
    "returns none: the loss is computed in strips",
    "their memory grows with the square of the batch",
    fails=(AssertionError, "is None"),
)
@pytest.mark.parametrize("family", families.SQUARE)
def test_training_keeps_no_logits(library: Any, family: str) -> None:
    outputs = families.model(family, library=library).train()(**pairs(family), return_loss=True)
    assert outputs.logits_per_image is None
    assert outputs.loss.isfinite()


@pytest.mark.thorough
@difference(
    "losses",
    "training in several processes",
    "each compares its own pairs only",
    "the gradient of all pairs (`group`; `twinlens train` gives it)",
    "other images' texts are what a contrastive loss learns from",
    fails=(AssertionError, "not close"),
)
def test_processes_share_their_pairs(library: Any, tmp_path: Path) -> None:
    name, ranks = library.__name__, range(2)
    for process in [start(two_processes.main, n, str(tmp_path), name, output=tmp_path / f"log {n}") for n in ranks]:
        assert finish(process) == 0, [(tmp_path / f"log {rank}").read_text() for rank in ranks]
    for rank in ranks:
        same(torch.load(tmp_path / f"{name} {rank}.pt"), two_processes.gradients(library, slice(None)))


@difference(
    "losses",
    "NaN in the embeddings of a loss",
    "the loss is NaN, silently",
    "an error with the row",
    "nothing is learnt from then on",
    fails=SILENT,
)
def test_nan_is_an_error(library: Any) -> None:
    inputs = pairs("Siglip")
    inputs["pixel_values"][1] = torch.nan
    with pytest.raises(ValueError, match="Row 1 of image_embeds holds NaN"):
        families.model("Siglip", library=library).train()(**inputs, return_loss=True)


@difference(
    "losses",
    "scale and bias of a new SigLIP",
    "0 and 0",
    "log 10 and -10",
    "section 3.2 of the paper",
    fails=(AssertionError, "0.0"),
)
def test_first_scale_and_bias(library: Any) -> None:
    model = library.SiglipModel(families.config("Siglip", library))
    assert (model.logit_scale.item(), model.logit_bias.item()) == (pytest.approx(math.log(10)), -10)


@difference(
    "losses",
    "first weights of a new CLIP",
    "output projections large, input projections small",
    "the other way round",
    "openai/CLIP `initialize_parameters`",
    fails=(AssertionError, "assert "),
)
def test_first_weights_of_clip(library: Any) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 2}
    layer = library.CLIPVisionModel(library.CLIPVisionConfig(**wide, image_size=32)).encoder.layers[0]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert layer.self_attn.out_proj.weight.std().item() == pytest.approx(128**-0.5 * 16**-0.5, rel=0.05)


# --- training ---------------------------------------------------------------------------------------------------------


def trainer(library: Any, family: str, folder: Path, count: int, **settings: Any) -> Any:
    """The trainer of a library for pairs of an image and a text, with settings that both know."""
    trainers: dict[str, tuple[Any, Any]] = {
        "transformers": (transformers.Trainer, transformers.TrainingArguments),
        "twinlens": (ContrastiveTrainer, ContrastiveTrainingArguments),
    }
    trainer_class, arguments = trainers[library.__name__]
    columns = pairs(family, count)
    samples = [{name: values[row] for name, values in columns.items()} for row in range(count)]
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 4,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_drop_last": True,
    }  # fmt: skip
    return trainer_class(
        model=families.model(family, library=library),
        args=arguments(**{**defaults, **settings}),
        train_dataset=samples,
        eval_dataset=samples,
        data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


@difference(
    "training",
    "pairs of images and texts in a `Trainer`",
    "an error, unless each batch says `return_loss=True`",
    "`ContrastiveTrainer` and `twinlens train` train",
    "there is nothing else to train on",
    fails=(ValueError, "did not return a loss"),
)
def test_pairs_are_all_that_is_needed(library: Any, tmp_path: Path) -> None:
    run = trainer(library, "CLIP", tmp_path, 8, learning_rate=1e-3)
    before = run.model.visual_projection.weight.detach().clone()
    run.train()
    assert not torch.equal(run.model.visual_projection.weight, before)


@difference(
    "training",
    "evaluation of pairs in a `Trainer`",
    "neither loss nor metrics",
    "the loss, and the recall in both directions",
    "what tells whether it learns",
    fails=(AssertionError, "eval_loss"),
)
def test_evaluation_has_a_loss(library: Any, tmp_path: Path) -> None:
    metrics = trainer(library, "CLIP", tmp_path, 8).evaluate()
    assert metrics.keys() >= {"eval_loss", "eval_image_to_text_recall_at_1"}


@difference(
    "nothing-learnt",
    "a batch of one pair under the softmax loss",
    "the loss is 0 for ever, silently",
    "an error before the run",
    "one pair has nothing to be told apart from",
    fails=SILENT,
)
def test_a_batch_of_one(library: Any, tmp_path: Path) -> None:
    run = trainer(library, "CLIP", tmp_path, 4, per_device_train_batch_size=1)
    collate = run.data_collator
    if library is not twinlens:
        run.data_collator = lambda rows: {**collate(rows), "return_loss": True}
    with pytest.raises(ValueError, match="one pair is always 0"):
        run.train()


@difference(
    "nothing-learnt",
    "fewer pairs than a batch has, where the last batch is dropped",
    "no update, and a run that ends as if all were well",
    "an error before the run",
    "the weights are those of before",
    fails=SILENT,
)
def test_fewer_pairs_than_a_batch(library: Any, tmp_path: Path) -> None:
    run = trainer(library, "CLIP", tmp_path, 3)
    with pytest.raises(ValueError, match="A batch has 4 pairs, and there are 3"):
        run.train()


@difference(
    "nothing-learnt",
    "a run that is killed while it writes a checkpoint",
    "leaves one without its last files, by which the next run fails",
    "a checkpoint is there with all its files or not at all; the next run goes on from the last whole one",
    "spot machines are taken away at any moment",
    fails=(FileNotFoundError, "trainer_state.json"),
)
def test_a_killed_run_goes_on(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Any:
        run = trainer(library, "CLIP", tmp_path, 8, max_steps=3, save_strategy="steps", save_steps=1)
        collate = run.data_collator
        if library is not twinlens:
            run.data_collator = lambda rows: {**collate(rows), "return_loss": True}
        return run

    first = run()
    save = first._save_rng_state

    def save_or_die(folder: str) -> None:
        if first.state.global_step == 2:
            raise KeyboardInterrupt
        save(folder)

    monkeypatch.setattr(first, "_save_rng_state", save_or_die)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = run()
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 3
