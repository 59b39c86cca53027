"""Folders and graphs for other programs: each test fails with transformers' class and passes with ours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from helpers.differences import difference

import twinlens
from twinlens.catalogue import bundled_checkpoint
from twinlens.conversion import convert

TEXTS = ["a red star", "a blue circle and a green square"]
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]  # sentence-transformers, torch.onnx


@difference(
    "serving",
    "a SigLIP's folder in sentence-transformers",
    "texts padded to the longest of their batch: other embeddings, silently",
    "`twinlens convert` and `twinlens train` write what it needs to know",
    "training had no short texts",
    fails=(AssertionError, "Not equal to tolerance"),
)
def test_folders_for_sentence_transformers(library: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    pieces = bundled_checkpoint("siglip-shapes").weights.with_name("shapes.model")
    tokenizer = transformers.SiglipTokenizer(str(pieces), model_max_length=16)
    model = twinlens.SiglipModel.from_pretrained("siglip-shapes")
    twinlens.to_transformers(model).save_pretrained(tmp_path / "transformers")
    transformers.SiglipProcessor(transformers.SiglipImageProcessorPil(), tokenizer).save_pretrained(
        tmp_path / "transformers"
    )
    convert(tmp_path / "transformers", tmp_path / "twinlens", verify=False)
    found = SentenceTransformer(str(tmp_path / library.__name__), device="cpu").encode(TEXTS, normalize_embeddings=True)
    expected = model.encode(TEXTS, twinlens.SiglipProcessor.from_pretrained("siglip-shapes"), convert_to_numpy=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@difference(
    "serving",
    "ONNX and OpenVINO graphs",
    "not part of it",
    "`twinlens onnx`: compared with the model in the runtime before they appear; texts of any length",
    "a graph is data for other programs",
    fails=(AttributeError, "deployment"),
)
def test_graphs_for_other_runtimes(library: Any, tmp_path: Path) -> None:
    model = twinlens.SiglipModel.from_pretrained("siglip-shapes")
    (check,) = library.deployment.export_onnx(model, tmp_path / "graphs", towers=("text",))
    assert check.passed
