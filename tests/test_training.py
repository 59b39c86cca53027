"""The trainer: metrics, groups of parameters, large batches in slices, several processes, resumption, and the command."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import twinlens
from twinlens.training import (
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    TrainingPlan,
    ZeroShotTask,
    add_lora,
    freeze,
    parameter_groups,
    retrieval_metrics,
    zero_shot_accuracy,
)


def tiny(family: str, **vision) -> twinlens.DualEncoderModel:
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**towers, "vocab_size": 99, "max_position_embeddings": 8}
    vision = {**towers, "image_size": 16, "patch_size": 8, **vision}
    if family == "clip":
        config = twinlens.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        return twinlens.CLIPModel(config)
    return twinlens.SiglipModel(twinlens.SiglipConfig(vision_config=vision, text_config=text))


class TestRetrieval:
    def test_ranks_are_those_of_a_loop(self):
        images, texts = (nn.functional.normalize(torch.randn(40, 5), dim=-1) for _ in range(2))
        metrics = retrieval_metrics(images, texts, ks=(1, 3))
        similarity = (images @ texts.T).numpy()
        for name, table in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            ranks = np.array([(row > row[i]).sum() for i, row in enumerate(table)])
            for k in (1, 3):
                assert metrics[f"{name}_recall_at_{k}"] == pytest.approx((ranks < k).mean())

    def test_a_constant_encoder_finds_nothing(self):
        same = nn.functional.normalize(torch.ones(30, 4), dim=-1)
        assert set(retrieval_metrics(same, same).values()) == {0.0}

    def test_equal_captions_and_equal_images_are_equally_right(self):
        """Pairs 0 and 1 have one caption, and image 1 is nearest to it: both answers are right."""
        texts = torch.eye(3)[[0, 0, 1]]
        images = nn.functional.normalize(torch.tensor([[1.0, 0.1, 0], [1, 0, 0], [0, 1, 0]]), dim=-1)
        alone = retrieval_metrics(images, texts, ks=(1,))
        ids = torch.tensor([[5, 6], [5, 6], [7, 8]])
        assert alone["text_to_image_recall_at_1"] == pytest.approx(2 / 3)
        assert retrieval_metrics(images, texts, text_ids=ids, ks=(1,)) == {
            "image_to_text_recall_at_1": 1.0,
            "text_to_image_recall_at_1": 1.0,
        }
        by_image = retrieval_metrics(images, texts, image_ids=torch.tensor([3, 3, 4]), ks=(1,))
        assert by_image["text_to_image_recall_at_1"] == 1.0

    def test_blocks_do_not_matter(self, monkeypatch):
        images, texts = (nn.functional.normalize(torch.randn(50, 4), dim=-1) for _ in range(2))
        whole = retrieval_metrics(images, texts)
        monkeypatch.setattr("twinlens.training.metrics.BLOCK", 7)
        assert retrieval_metrics(images, texts) == whole

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="got 3 and 2"):
            retrieval_metrics(torch.eye(3), torch.eye(3)[:2])
        with pytest.raises(ValueError, match="got none"):
            zero_shot_accuracy(torch.empty(0, 3), torch.eye(3), torch.empty(0))

    def test_zero_shot(self):
        assert zero_shot_accuracy(torch.eye(4), torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


class TestParameters:
    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_groups(self, family):
        """Every parameter is in one group; what is a vector or a number does not decay; layers learn slower downwards."""
        model = tiny(family)
        groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.2, layer_decay=0.5)
        found = {id(p): group for group in groups for p in group["params"]}
        assert len(found) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        named = {name: found[id(p)] for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            assert named[name]["weight_decay"] == (0.2 if p.ndim > 1 else 0.0)
            assert ("norm" in name or "bias" in name or "logit" in name) <= (named[name]["weight_decay"] == 0)
        assert named["logit_scale"]["lr"] == 1
        for tower in ("vision_model", "text_model"):
            rates = [named[f"{tower}.encoder.layers.{n}.mlp.fc1.weight"]["lr"] for n in range(3)]
            assert [*rates, named[f"{tower}.embeddings.position_embedding.weight"]["lr"]] == [0.125, 0.25, 0.5, 0.0625]

    def test_freezing_leaves_the_embeddings_of_a_tower(self):
        model = tiny("clip")
        freeze(model, "image")
        trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"text_model", "text_projection", "logit_scale"}
        with pytest.raises(ValueError, match="image, text, got 'both'"):
            freeze(model, "both")

    def test_nothing_to_train(self):
        model = tiny("siglip").requires_grad_(False)
        with pytest.raises(ValueError, match="No parameter is trainable"):
            parameter_groups(model, learning_rate=1, weight_decay=0)

    @pytest.mark.parametrize("family", ["clip", "siglip"])
    def test_lora_starts_from_the_model_and_merges_into_it(self, family):
        model, pixels, ids = tiny(family).eval(), torch.randn(2, 3, 16, 16), torch.randint(2, 99, (2, 8))
        before = model.encode_image(pixels), model.encode_text(ids)
        adapted = add_lora(model, 2).eval()
        trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert trained
        assert all("lora_" in name for name in trained)
        assert any("head.attention.out_proj" in name for name in trained) == (family == "siglip")
        torch.testing.assert_close(adapted.encode_image(pixels), before[0])
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.1)
        after = adapted.encode_image(pixels), adapted.encode_text(ids)
        assert (after[0] - before[0]).abs().max() > 1e-3
        merged = adapted.merge_and_unload()
        assert type(merged) is type(tiny(family))
        torch.testing.assert_close((merged.encode_image(pixels), merged.encode_text(ids)), after, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="at least 1, got 0"):
            add_lora(tiny(family), 0)
