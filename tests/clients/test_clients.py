"""Each client library, unchanged: with transformers' class, and with ours."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import twinlens
from twinlens import compat
from twinlens.toy_world import ShapesDataset

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [ShapesDataset("test", size=8)[number] for number in range(8)]
IMAGES, TEXTS = [pair["image"] for pair in PAIRS], [pair["text"] for pair in PAIRS]
LONG = "a red star and a blue ring, " * 8
Record = Callable[..., None]
Folders = dict[str, Path]


def both(folder: Path) -> dict[str, tuple[Any, Any]]:
    """The model and processor of a folder by the Auto classes, before and after `register`."""
    found = {}
    for name in ("transformers", "twinlens"):
        with twinlens.register() if name == "twinlens" else nullcontext():
            auto = transformers.AutoModel, transformers.AutoProcessor
            found[name] = tuple(part.from_pretrained(folder) for part in auto)
        assert {type(part).__module__.split(".")[0] for part in found[name]} == {name}
    return found


@torch.no_grad()
def features(model: Any, processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of images and texts, as client code computes them from any model of transformers."""
    images = model.get_image_features(**processor(images=IMAGES, return_tensors="pt")).pooler_output
    texts = processor(text=TEXTS, padding="max_length", return_tensors="pt")
    embeds = images, model.get_text_features(**texts).pooler_output
    return tuple(x / x.norm(dim=-1, keepdim=True) for x in embeds)  # type: ignore[return-value]


def difference(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).max())


class TestTorchmetrics:
    def test_clip_score(self, folders: Folders, record: Record) -> None:
        """Its code is of before transformers 5: it takes the norm of what `get_image_features` returns."""
        from torchmetrics.multimodal import CLIPScore

        pixels = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in IMAGES]
        processor = twinlens.CLIPProcessor.from_pretrained(folders["clip-shapes"])

        def score(model: Any) -> float:
            metric = CLIPScore(model_name_or_path=lambda: (model.eval(), processor))
            metric.update(pixels, TEXTS)
            return float(metric.compute())

        with pytest.raises(AttributeError, match="norm"):
            score(transformers.CLIPModel.from_pretrained(folders["clip-shapes"]))
        model = compat.CLIPModel.from_pretrained(folders["clip-shapes"])
        cosines = (model.encode(pixels, processor) * model.encode(TEXTS, processor)).sum(dim=1)
        expected = max(float(100 * cosines.mean()), 0)
        assert expected > 1
        record("torchmetrics", "CLIPScore", abs(score(model) - expected) / expected, "AttributeError")


class TestLanceDB:
    def test_siglip_function_and_search(self, folders: Folders, record: Record, tmp_path: Path) -> None:
        """It loads transformers' class by its name, and expects tensors."""
        import lancedb
        from lancedb.embeddings import get_registry

        create = get_registry().get("siglip").create
        with pytest.raises((ValueError, AttributeError)):
            create(model_name=str(folders["siglip-shapes"])).generate_text_embeddings(TEXTS[0])
        with compat.in_place_of_transformers():
            function = create(model_name=str(folders["siglip-shapes"]))
        model, processor = both(folders["siglip-shapes"])["twinlens"]
        texts = np.stack([function.generate_text_embeddings(text) for text in TEXTS])
        expected = model.encode(TEXTS, processor, convert_to_numpy=True)
        images = model.encode(IMAGES, processor, convert_to_numpy=True)
        stored = lancedb.connect(tmp_path).create_table(
            "images", [{"vector": row, "number": number} for number, row in enumerate(images)]
        )
        found = [stored.search(row).metric("cosine").limit(1).to_list()[0]["number"] for row in texts]
        assert found == (expected @ images.T).argmax(axis=1).tolist()
        record("lancedb", "its siglip function, and a search", difference(texts, expected), "an error")


class TestCompel:
    def test_long_prompts(self, folders: Folders, record: Record) -> None:
        """It asks the tokenizer for uncut ids, and encodes a long prompt in parts."""
        from compel import Compel

        tokenizers = {
            "transformers": transformers.AutoTokenizer.from_pretrained(folders["clip-shapes"]),
            "twinlens": twinlens.CLIPTokenizer.from_pretrained(folders["clip-shapes"]),
        }
        embeds = []
        for name, library in (("transformers", transformers), ("twinlens", twinlens)):
            encoder = library.CLIPTextModel.from_pretrained(folders["clip-shapes"])
            client = Compel(tokenizer=tokenizers[name], text_encoder=encoder, truncate_long_prompts=False)
            with torch.no_grad():
                embeds.append(client(LONG))
        assert embeds[0].shape[1] > 3 * tokenizers["twinlens"].model_max_length
        assert embeds[0].shape == embeds[1].shape
        record("compel", "a prompt three times as long as the model reads", difference(*embeds))


class TestVectorStores:
    def test_faiss(self, folders: Folders, record: Record) -> None:
        rows = {name: features(*parts) for name, parts in both(folders["clip-shapes"]).items()}
        found = []
        for images, texts in rows.values():
            index = faiss.IndexFlatIP(images.shape[1])
            index.add(images.numpy())
            found.append(index.search(texts.numpy(), 3))
        assert (found[0][1] == found[1][1]).all()
        record("faiss-cpu", "scores of a search", difference(found[0][0], found[1][0]))

    def test_qdrant(self, folders: Folders, record: Record) -> None:
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, PointStruct, VectorParams

        scores = []
        for images, texts in (features(*parts) for parts in both(folders["clip-shapes"]).values()):
            client = QdrantClient(":memory:")
            client.create_collection("images", VectorParams(size=images.shape[1], distance=Distance.COSINE))
            points = [PointStruct(id=number, vector=row.tolist()) for number, row in enumerate(images)]
            client.upsert("images", points)
            answers = [client.query_points("images", row.tolist(), limit=1).points[0] for row in texts]
            scores.append([answer.score for answer in answers])
        record("qdrant-client", "scores of a search in memory", difference(*scores))

    def test_chroma(self, folders: Folders, record: Record) -> None:
        import chromadb

        distances = []
        for name, parts in both(folders["clip-shapes"]).items():
            images, texts = features(*parts)
            space: Any = {"hnsw": {"space": "cosine"}}
            stored = chromadb.EphemeralClient().create_collection(f"images-{name}", configuration=space)
            stored.add(ids=[str(row) for row in range(len(images))], embeddings=images.numpy())
            answer = stored.query(query_embeddings=texts.numpy(), n_results=3)
            assert [int(row[0]) for row in answer["ids"]] == (texts @ images.T).argmax(dim=1).tolist()
            distances.append(answer["distances"])
        record("chromadb", "distances of a search in memory", difference(*distances))

    def test_langchain(self, folders: Folders, record: Record) -> None:
        """Its store asks for the vectors of what it is given, here of images by their numbers, and of questions."""
        from langchain_core.embeddings import Embeddings
        from langchain_core.vectorstores import InMemoryVectorStore

        class Rows(Embeddings):
            def __init__(self, images: torch.Tensor, texts: torch.Tensor) -> None:
                self.images, self.texts = images, texts

            def embed_documents(self, texts: list[str]) -> list[list[float]]:
                return [self.images[int(text)].tolist() for text in texts]

            def embed_query(self, text: str) -> list[float]:
                return self.texts[TEXTS.index(text)].tolist()

        scores = []
        for parts in both(folders["clip-shapes"]).values():
            store = InMemoryVectorStore(Rows(*features(*parts)))
            store.add_texts([str(number) for number in range(len(IMAGES))])
            scores.append([store.similarity_search_with_score(text, k=1)[0][1] for text in TEXTS])
        record("langchain-core", "scores of its store in memory", difference(*scores))

    def test_llama_index(self, folders: Folders, record: Record) -> None:
        from llama_index.core import VectorStoreIndex
        from llama_index.core.embeddings import MockEmbedding
        from llama_index.core.schema import QueryBundle, TextNode

        scores = []
        for images, texts in (features(*parts) for parts in both(folders["clip-shapes"]).values()):
            nodes = [TextNode(text=str(number), embedding=row.tolist()) for number, row in enumerate(images)]
            index = VectorStoreIndex(nodes, embed_model=MockEmbedding(images.shape[1]))  # which is asked for nothing
            queries = [QueryBundle(text, embedding=row.tolist()) for text, row in zip(TEXTS, texts, strict=True)]
            search = index.as_retriever(similarity_top_k=1)
            scores.append([search.retrieve(query)[0].score for query in queries])
        record("llama-index-core", "scores of its index in memory", difference(*scores))


class TestEncoders:
    @pytest.mark.parametrize("name", ["clip-shapes", "siglip-shapes"])
    def test_sentence_transformers(self, name: str, folders: Folders, record: Record) -> None:
        from sentence_transformers import SentenceTransformer

        size = both(folders[name])["twinlens"][0].config.vision_config.image_size
        images = [image.resize((size, size), Image.Resampling.BICUBIC) for image in IMAGES]
        embeds = []
        for registered in (False, True):
            with twinlens.register() if registered else nullcontext():
                encoder = SentenceTransformer(str(folders[name]), device="cpu")
            assert type(encoder[0].model).__module__.startswith("twinlens" if registered else "transformers")
            embeds.append(np.concatenate([encoder.encode(images), encoder.encode(TEXTS)]))
        record("sentence-transformers", f"encode, {name}", difference(*embeds))

    def test_pipeline(self, folders: Folders, record: Record) -> None:
        scores = []
        for registered in (False, True):
            with twinlens.register() if registered else nullcontext():
                classify = transformers.pipeline("zero-shot-image-classification", model=str(folders["clip-shapes"]))
            answers = classify(IMAGES[0], candidate_labels=sorted({*TEXTS}))
            scores.append([answer["score"] for answer in sorted(answers, key=lambda answer: answer["label"])])
        record("transformers", "zero-shot-image-classification pipeline", difference(*scores))

    @pytest.mark.parametrize("name", ["clip-shapes", "siglip-shapes"])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_bitsandbytes(self, name: str, bits: int, folders: Folders, record: Record) -> None:
        """transformers leaves the head of SigLIP as it is; here it is quantised too."""
        quantized = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        pixels, family = torch.randn(2, 3, 64, 64), {"clip-shapes": "CLIP", "siglip-shapes": "Siglip"}[name]
        towers = [getattr(library, f"{family}VisionModel") for library in (transformers, twinlens)]
        with torch.no_grad():
            expected = towers[0].from_pretrained(folders[name])(pixels).pooler_output
            outputs = [tower.from_pretrained(folders[name], quantization_config=quantized)(pixels) for tower in towers]
        for output in outputs:
            assert torch.cosine_similarity(output.pooler_output, expected).min() > 0.95
        states = [output.last_hidden_state for output in outputs]
        record("bitsandbytes", f"the patches of an image tower in {bits} bits, {name}", difference(*states))

    def test_peft(self, folders: Folders, record: Record, tmp_path: Path) -> None:
        """An adapter trained on our model, saved by peft, and loaded into transformers' model."""
        from peft import LoraConfig, PeftModel, get_peft_model

        parts = both(folders["clip-shapes"])
        adapted = get_peft_model(parts["twinlens"][0], LoraConfig(r=2, target_modules=["q_proj", "out_proj", "fc1"]))
        with torch.no_grad():
            for name, parameter in sorted(adapted.named_parameters()):
                if "lora_" in name:
                    parameter.normal_(std=0.1)
        adapted.eval().save_pretrained(str(tmp_path))
        theirs = PeftModel.from_pretrained(parts["transformers"][0], str(tmp_path)).eval()
        processor = parts["twinlens"][1]
        found, expected = (features(model.base_model.model, processor) for model in (adapted, theirs))
        record("peft", "a LoRA of ours in transformers' model", max(map(difference, found, expected)))
