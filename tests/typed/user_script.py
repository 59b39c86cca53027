"""What people write, and the types that editors and type checkers have to show them; checked as theirs, never run.

`mypy --strict` and `pyright` accept it with their own defaults, in a folder without configuration, of an installed
twinlens.
"""

from pathlib import Path
from random import Random

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.models.clip.modeling_clip import CLIPOutput
from typing_extensions import assert_type

import twinlens
from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.catalogue import bundled_checkpoint, official_checkpoint
from twinlens.configuration import FAMILIES
from twinlens.conversion import ParityError, convert, export, push
from twinlens.evaluation import retrieval_metrics, zero_shot_accuracy
from twinlens.inference import classify_images
from twinlens.modeling import sigmoid_loss, softmax_loss
from twinlens.parity import Certificate, verify
from twinlens.processing import DualEncoderImageProcessor, DualEncoderTokenizer
from twinlens.toy_world import KINDS, ShapesDataset, describe_kind, draw_scene, render
from twinlens.training import ContrastiveTrainer, ContrastiveTrainingArguments, TrainingPlan, load_pairs, train


def every_class_loads_itself(folder: str) -> None:
    assert_type(DualEncoderModel.from_pretrained(folder), DualEncoderModel)
    assert_type(twinlens.CLIPModel.from_pretrained(folder), twinlens.CLIPModel)
    assert_type(twinlens.CLIPVisionModel.from_pretrained(folder), twinlens.CLIPVisionModel)
    assert_type(twinlens.CLIPTextModel.from_pretrained(folder), twinlens.CLIPTextModel)
    assert_type(twinlens.CLIPVisionModelWithProjection.from_pretrained(folder), twinlens.CLIPVisionModelWithProjection)
    assert_type(twinlens.CLIPTextModelWithProjection.from_pretrained(folder), twinlens.CLIPTextModelWithProjection)
    assert_type(twinlens.CLIPForImageClassification.from_pretrained(folder), twinlens.CLIPForImageClassification)
    assert_type(twinlens.SiglipModel.from_pretrained(folder), twinlens.SiglipModel)
    assert_type(twinlens.SiglipVisionModel.from_pretrained(folder), twinlens.SiglipVisionModel)
    assert_type(twinlens.SiglipTextModel.from_pretrained(folder), twinlens.SiglipTextModel)
    assert_type(twinlens.SiglipForImageClassification.from_pretrained(folder), twinlens.SiglipForImageClassification)

    assert_type(twinlens.DualEncoderConfig.from_pretrained(folder), twinlens.DualEncoderConfig)
    assert_type(twinlens.CLIPConfig.from_pretrained(folder), twinlens.CLIPConfig)
    assert_type(twinlens.CLIPVisionConfig.from_pretrained(folder), twinlens.CLIPVisionConfig)
    assert_type(twinlens.SiglipConfig.from_pretrained(folder), twinlens.SiglipConfig)
    assert_type(twinlens.SiglipTextConfig.from_pretrained(folder), twinlens.SiglipTextConfig)

    assert_type(DualEncoderProcessor.from_pretrained(folder), DualEncoderProcessor)
    assert_type(twinlens.CLIPProcessor.from_pretrained(folder), twinlens.CLIPProcessor)
    assert_type(twinlens.SiglipProcessor.from_pretrained(folder), twinlens.SiglipProcessor)
    assert_type(twinlens.Siglip2Processor.from_pretrained(folder), twinlens.Siglip2Processor)
    assert_type(twinlens.CLIPImageProcessor.from_pretrained(folder), twinlens.CLIPImageProcessor)
    assert_type(twinlens.SiglipImageProcessor.from_pretrained(folder), twinlens.SiglipImageProcessor)
    assert_type(twinlens.Siglip2ImageProcessor.from_pretrained(folder), twinlens.Siglip2ImageProcessor)
    assert_type(twinlens.CLIPTokenizer.from_pretrained(folder), twinlens.CLIPTokenizer)
    assert_type(twinlens.SiglipTokenizer.from_pretrained(folder), twinlens.SiglipTokenizer)


def compare(source: str, pictures: list[Image.Image], texts: list[str]) -> None:
    model = DualEncoderModel.from_pretrained(source, dtype=torch.float16, attn_implementation="sdpa")
    processor = DualEncoderProcessor.from_pretrained(source)
    inputs = processor(images=pictures)
    assert_type(inputs, BatchFeature)
    assert_type(model.eval(), DualEncoderModel)
    image_embeds = model.encode_image(**inputs)
    text_embeds = model.encode_text(**processor(text=texts))
    assert_type(image_embeds, torch.Tensor)
    assert_type(text_embeds, torch.Tensor)
    assert_type(model.logits(image_embeds, text_embeds), torch.Tensor)
    print(model.config.vision_config.image_size + 1, model.config.text_config.vocab_size + 1)
    assert_type(processor.tokenizer, DualEncoderTokenizer)
    assert_type(processor.image_processor, DualEncoderImageProcessor)
    print(processor.tokenizer.model_max_length, processor.image_processor.describe())
    ids: torch.Tensor = processor.tokenizer(texts, return_tensors="pt")["input_ids"]
    print(ids.shape)


def embed_a_data_set(folder: Path, model: DualEncoderModel, processor: DualEncoderProcessor) -> None:
    embed = twinlens.Embedder(folder, image_column="picture", device="cpu", dtype=torch.float16)
    print(embed({"picture": ["cat.jpg"]})["image_embeds"].shape, twinlens.Embedder(model, processor)([{"text": "a"}]))


def convert_and_share(file: Path, folder: Path) -> None:
    try:
        certificate = convert(file, folder, image_size=384, dtype="float32")
    except ParityError as error:
        raise SystemExit(str(error)) from error
    assert_type(certificate, Certificate)
    assert_type(convert(file, folder, verify=False), Certificate | None)
    assert_type(verify(file, folder), Certificate)
    print(verify(file, folder).passed, export(folder, "again.npz", format="big_vision"))
    print(push(folder, "someone/model", dry_run=True).describe())
    print(official_checkpoint("ViT-B/32"), bundled_checkpoint("clip-shapes").weights, FAMILIES["clip"].model)


def learn(folder: Path) -> None:
    scale, bias = torch.zeros(1), torch.zeros(1)
    embeds = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    assert_type(sigmoid_loss(embeds, embeds, scale, bias), torch.Tensor)
    assert_type(softmax_loss(embeds, embeds, scale), torch.Tensor)
    model, processor = twinlens.SiglipModel.from_pretrained("base"), twinlens.SiglipProcessor.from_pretrained("base")
    arguments = ContrastiveTrainingArguments(str(folder), per_device_train_batch_size=8, gradient_cache_size=4)
    trainer = ContrastiveTrainer(model, arguments, train_dataset=load_pairs(str(folder)), processing_class=processor)
    trainer.train()
    train(TrainingPlan(model="base", data=str(folder), output=str(folder / "trained")))


def use(model: twinlens.CLIPModel, processor: twinlens.CLIPProcessor, pictures: list[Path]) -> None:
    assert_type(model(**processor(images=pictures, text="a cat")), CLIPOutput)
    images = model.encode(pictures, processor, batch_size=8, show_progress_bar=True)
    texts = model.encode(["a cat", "a dog"], processor, kind="text")
    print(retrieval_metrics(images, texts), zero_shot_accuracy(images, texts, torch.tensor([0, 1])))
    print(classify_images(str(pictures[0]), pictures, ["a cat", "a dog"]))
    dataset = ShapesDataset("train", size=8)
    captions: list[str] = [pair["text"] for pair in dataset]
    print(len(dataset), captions, KINDS, describe_kind(KINDS[0]), render(draw_scene(Random(0)), 64))
