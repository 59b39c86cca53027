"""Model cards as the Hub reads them, and pushes to a server on this machine that keeps what arrives as the Hub does."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from helpers.builders import (
    TINY_CLIP,
    TINY_CLIP_JSON,
    TINY_SIGLIP,
    TRUNK_OPTIONS,
    open_clip_tensors,
    timm_tensors,
    write_beside,
    write_big_vision,
    write_openai,
    write_transformers,
)
from helpers.photographs import PHOTOGRAPHS
from helpers.versions import NEEDS_AUTO_IMAGE_PROCESSOR
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from twinlens.catalogue import CATALOGUE, OfficialCheckpoint
from twinlens.conversion import convert
from twinlens.conversion.model_card import model_card
from twinlens.conversion.push import push
from twinlens.formats import Checkpoint, read_checkpoint
from twinlens.modeling import DualEncoderModel, SiglipVisionModel
from twinlens.parity import certify
from twinlens.processing import DualEncoderProcessor, SiglipImageProcessor, SiglipProcessor, build_processor

# huggingface_hub uploads in a way that httpx2 will do without one day.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

# Of the Hub's list of licences, those in the catalogue and the one for what is not known
LICENSES = {"mit", "apache-2.0", "apple-amlr", "cc-by-nc-4.0", "unknown"}


def write_checkpoint(path: Path, format: str) -> Checkpoint:
    if format == "openai":
        write_openai(path, **{**TINY_CLIP, "vocabulary": 49408})
    elif format == "big_vision":
        write_big_vision(path, **TINY_SIGLIP)
    elif format == "open_clip":
        content = {"model_cfg": TINY_CLIP_JSON}
        write_beside(path, open_clip_tensors(**TINY_CLIP), "safetensors", "open_clip_config.json", content)
    elif format == "transformers":
        write_transformers(path, "siglip")
    else:
        write_beside(path, timm_tensors(grid=3, patch=16, width=48, layers=2, mlp=72), "safetensors")
        return read_checkpoint(path, **TRUNK_OPTIONS)
    return read_checkpoint(path)


def processor_of(checkpoint: Checkpoint) -> DualEncoderProcessor:
    if checkpoint.format == "timm":
        return SiglipProcessor(SiglipImageProcessor(size={"height": 48, "width": 48}))
    return build_processor(checkpoint.config)


def metadata(card: str) -> dict[str, Any]:
    """As huggingface_hub reads it, which is as YAML does."""
    found = ModelCard(card).data.to_dict()
    assert found == yaml.safe_load(card.split("---\n")[1])
    return found


ZERO_SHOT, FEATURES = "zero-shot-image-classification", "image-feature-extraction"
CARDS = {
    "openai": ("mit", "clip", ZERO_SHOT),
    "big_vision": ("apache-2.0", "siglip", FEATURES),
    "open_clip": ("unknown", "clip", FEATURES),
    "timm": ("unknown", "siglip", FEATURES),
    "transformers": ("unknown", "siglip", FEATURES),
}


class TestCard:
    @pytest.mark.parametrize("format", CARDS)
    def test_of_a_file_of_unknown_origin(self, format: str, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "weights", format)
        card = model_card(checkpoint, processor_of(checkpoint), None, ())
        license, family, task = CARDS[format]
        assert metadata(card) == {
            "library_name": "transformers",
            "pipeline_tag": task,
            "license": license,
            "tags": [family, "vision", "twinlens"],
        }
        assert ("Nor can their licence, so none is stated" in card) == (license == "unknown")
        assert ("that of the official release; check it" in card) == (license != "unknown")

    @pytest.mark.parametrize("row", CATALOGUE.values(), ids=lambda row: row.name)
    def test_of_a_published_checkpoint(self, row: OfficialCheckpoint, tiny: Checkpoint) -> None:
        card = model_card(tiny, build_processor(tiny.config), None, (), row)
        found = metadata(card)
        assert found["license"] == row.license
        assert found["license"] in LICENSES
        assert found["tags"][0] == row.family
        if row.name.startswith("RN"):
            assert "base_model" not in found  # nobody has published them there
        else:
            validate_repo_id(found["base_model"])
            assert "/" in found["base_model"]
        title = {"clip": "CLIP", "clip_resnet": "CLIP (ResNet)", "siglip": "SigLIP", "siglip2": "SigLIP 2"}[row.family]
        assert f"\n# {title} converted from `{row.name}`\n" in card
        assert f"That its licence is `{row.license}` is known from {row.sources['license']}." in card
        assert row.imagenet is None or f"ImageNet-1k: {row.imagenet}% (" in card
        assert re.search(r"checkpoint at <https://[^ >]+>\.$", card, flags=re.MULTILINE)

    @pytest.mark.parametrize(
        ("name", "repository"),
        [
            ("ViT-L/14@336px", "openai/clip-vit-large-patch14-336"),
            ("siglip2-base-patch16-224", "google/siglip2-base-patch16-224"),
            ("ViT-B-32:laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ],
    )
    def test_base_model(self, name: str, repository: str, tiny: Checkpoint) -> None:
        card = model_card(tiny, build_processor(tiny.config), None, (), CATALOGUE[name])
        assert metadata(card)["base_model"] == repository

    def test_with_proof(self, tiny: Checkpoint) -> None:
        certificate = certify(tiny, DualEncoderModel.from_pretrained(tiny.path))
        card = model_card(tiny, build_processor(tiny.config), certificate, ("A note.",))
        assert certificate.markdown() in card
        assert certificate.source["files"][0]["sha256"] in card
        assert "**A note.**" in card
        assert "changed nothing" in card
        assert "changed nothing" not in model_card(tiny, build_processor(tiny.config), None, ())

    @NEEDS_AUTO_IMAGE_PROCESSOR
    @pytest.mark.parametrize("format", ["openai", "big_vision", "timm"])
    def test_its_examples_run(self, format: str, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "weights", format)
        processor, folder = processor_of(checkpoint), tmp_path / "folder"
        if format == "timm":
            SiglipVisionModel(checkpoint.config).save_pretrained(folder)
        else:
            DualEncoderModel.from_pretrained(checkpoint.path).save_pretrained(folder)
        processor.save_pretrained(folder)
        blocks = re.findall(r"```python\n(.*?)```", model_card(checkpoint, processor, None, ()), flags=re.DOTALL)
        assert len(blocks) == 2
        images = [PHOTOGRAPHS["landscape"], PHOTOGRAPHS["square"]]
        for code in blocks:
            _, statements = code.split("\n\n")  # after the import
            assert len(statements.splitlines()) <= 3
            namespace: dict[str, Any] = {"images": images, "texts": ["a cat", "a rocket"]}
            exec(code.replace("FOLDER", str(folder)), namespace)
            assert len(namespace[statements.splitlines()[-1].partition(" = ")[0]]) == len(images)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("tiny") / "clip.pt"
    write_openai(path, **TINY_CLIP)
    return read_checkpoint(path)


TOKEN = "hf_of_someone"
Run = Callable[..., tuple[int, str, str]]
BIG = 10_000  # bytes above which files go to the large file storage, as do all weights


class Hub(ThreadingHTTPServer):
    """The Hub's API as far as an upload uses it. One commit is one dict of files; `answers` overrule its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.private: dict[str, bool] = {}
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.answers: dict[str, tuple[int, str]] = {}  # part of a path -> status, reason

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, repository: str, *, private: bool = False) -> dict[str, bytes]:
        """Make a repository; give its files, to be changed."""
        self.private[repository] = private
        return self.branches.setdefault((repository, "main"), {".gitattributes": b"*.safetensors filter=lfs\n"})


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append(f"{self.command} {path}")
        refusals = [answer for part, answer in self.server.answers.items() if part in path]
        if refusals:
            status, content = refusals[0][0], {"error": refusals[0][1]}
        elif self.headers["Authorization"] != f"Bearer {TOKEN}" and not path.startswith("/storage/"):
            status, content = 401, {"error": "Invalid username or password."}
        else:
            status, content = self.respond(path, body)
        answer = json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def respond(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        hub = self.server
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repository = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            url = {"url": f"{hub.address}/{repository}"}
            if repository in hub.private:
                return 409, {"error": "You already created this model repo", **url}
            hub.create(repository, private=wanted.get("private") or wanted.get("visibility") == "private")
            return 200, url
        if path == "/api/validate-yaml":
            found = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            errors = [] if found.get("license") in LICENSES else [{"message": '"license" must be one of a list'}]
            return (400 if errors else 200), {"errors": errors, "warnings": [], "error": "Invalid metadata"}
        if match := re.fullmatch(r"/storage/(\w{64})", path):
            hub.objects[match[1]] = body
            return 200, {}
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [self.storage(item) for item in json.loads(body)["objects"]]
            return 200, {"transfer": "basic", "objects": objects}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/?([^/]*))?", path)
        assert match, path
        repository, verb, revision = match[1], match[2], unquote(match[3] or "main")
        if repository not in hub.private:
            return 404, {"error": "Repository not found"}
        if verb == "branch":
            if (repository, revision) in hub.branches:
                return 409, {"error": "Reference already exists"}
            hub.branches[repository, revision] = dict(hub.branches[repository, "main"])
            return 200, {}
        if verb == "refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": "0" * 40}
                for name, branch in hub.branches
                if name == repository
            ]
            return 200, {"branches": branches, "converts": [], "tags": []}
        files = hub.branches.get((repository, revision))
        if files is None:
            return 404, {"error": "Invalid rev id"}
        if verb == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") or file["size"] > BIG else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if verb == "commit":
            return self.commit(repository, files, [json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": name} for name in files]
        assert verb in (None, "revision"), path
        return 200, {"id": repository, "private": hub.private[repository], "siblings": siblings, "sha": "0" * 40}

    def storage(self, item: dict[str, Any]) -> dict[str, Any]:
        """Say where an object goes, if it is not there."""
        upload = {"upload": {"href": f"{self.server.address}/storage/{item['oid']}"}}
        return {**item, **({} if item["oid"] in self.server.objects else {"actions": upload})}

    def commit(self, repository: str, files: dict[str, bytes], lines: list[dict[str, Any]]) -> tuple[int, dict]:
        header, *operations = lines
        for line in operations:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        self.server.messages.append(header["value"]["summary"])
        oid = f"{len(self.server.messages):040}"
        return 200, {"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid}

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, and this process as if it had been started with it in HF_ENDPOINT and a token in HF_TOKEN."""
    hub = Hub()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    write_openai(folder / "clip.pt", **{**TINY_CLIP, "vocabulary": 49408})
    convert(folder / "clip.pt", folder / "tiny-clip")
    return folder / "tiny-clip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that is a model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    safetensors.torch.save_file({"logit_scale": torch.ones(())}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPush:
    def test_every_byte_arrives(self, converted: Path, hub: Hub) -> None:
        result = push(converted, "someone/tiny-clip")
        arrived = hub.branches["someone/tiny-clip", "main"]
        assert {name: data for name, data in arrived.items() if name != ".gitattributes"} == contents(converted)
        assert {"README.md", "config.json", "model.safetensors", "parity.json", "tokenizer.json"} < arrived.keys()
        assert hashlib.sha256(arrived["model.safetensors"]).hexdigest() in hub.objects
        assert arrived["config.json"] not in hub.objects.values()
        assert hub.private == {"someone/tiny-clip": False}
        assert len(hub.messages) == 1
        assert re.fullmatch(r"Upload tiny-clip with twinlens \S+", hub.messages[0])
        assert result.url == f"{hub.address}/someone/tiny-clip/commit/{1:040}"
        assert (result.proof, result.removed, result.left_out) == ("pass", (), {})
        assert result.files == {name: len(data) for name, data in contents(converted).items()}

    def test_options(self, folder: Path, hub: Hub) -> None:
        for _ in range(2):  # the branch and the repository are there the second time
            result = push(folder, "firm/model", private=True, revision="float32", commit_message="All of it.")
        assert hub.private == {"firm/model": True}
        assert "model.safetensors" in hub.branches["firm/model", "float32"]
        assert hub.branches["firm/model", "main"].keys() == {".gitattributes"}
        assert hub.messages == ["All of it."] * 2
        assert (result.revision, result.private) == ("float32", True)
        assert len([request for request in hub.requests if "PUT" in request]) == 1  # what is there is not sent again

    def test_name_without_owner_is_ones_own(self, folder: Path, hub: Hub) -> None:
        assert push(folder, "model").repository == "someone/model"
        assert "config.json" in hub.branches["someone/model", "main"]

    def test_given_token_comes_first(self, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        assert push(folder, "someone/model", token=TOKEN).url

    def test_what_is_named_arrives_and_what_is_hidden_stays(self, folder: Path, hub: Hub) -> None:
        for name in ("assets/picture.txt", ".git/config", ".git/objects/1", ".env", "assets/__pycache__/a.pyc"):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text("text")
        planned = push(folder, "someone/model", include=["assets"], dry_run=True)
        result = push(folder, "someone/model", include=["assets"])
        assert result.left_out == {".env": "hidden", ".git": "hidden", "assets/__pycache__": "a cache"}
        assert (planned.files, planned.left_out) == (result.files, result.left_out)
        arrived = hub.branches["someone/model", "main"]
        assert arrived.keys() == {
            ".gitattributes",
            "README.md",
            "assets/picture.txt",
            "config.json",
            "model.safetensors",
        }

    def test_weights_and_proof_of_an_earlier_push_go(self, folder: Path, hub: Hub) -> None:
        """transformers would load the old `model.safetensors` before the new parts, and the old proof would lie."""
        files = hub.create("someone/model")
        files |= dict.fromkeys(
            ["model.safetensors", "pytorch_model.bin", "parity.json", "notes.txt", "config.json"], b""
        )
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"weight_map": {"logit_scale": "model-00001-of-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        result = push(folder, "someone/model")
        assert sorted(result.removed) == ["model.safetensors", "parity.json", "pytorch_model.bin"]
        assert files.keys() == {".gitattributes", "notes.txt", *contents(folder)}
        assert len(hub.messages) == 1

    @pytest.mark.parametrize("private", [True, False])
    def test_visibility_of_what_exists_is_not_ignored(self, private: bool, folder: Path, hub: Hub) -> None:
        files = hub.create("someone/model", private=not private)
        with pytest.raises(
            ValueError, match=r"was to be .* and exists already as a .* one\. Change that in its settings"
        ):
            push(folder, "someone/model", private=private)
        assert files.keys() == {".gitattributes"}
        assert push(folder, "someone/model").private is not private


class TestDryRun:
    def test_says_all_and_sends_nothing(self, converted: Path, hub: Hub) -> None:
        (converted / ".cache").mkdir(exist_ok=True)
        plan = push(
            converted, "someone/x", private=True, revision="v2", commit_message="Second.", dry_run=True, token="none"
        )
        (converted / ".cache").rmdir()
        assert hub.requests == []
        assert plan.url is None
        facts = [re.split(r" {2,}", line) for line in plan.describe().splitlines()]
        size = (converted / "model.safetensors").stat().st_size
        for fact in (
            ["repository", "someone/x"],
            ["revision", "v2"],
            ["visibility", "private"],
            ["message", "Second."],
            ["proof", "the verdict in parity.json is 'pass'"],
            ["upload", f"model.safetensors, {size:,} bytes"],
            ["leave out", ".cache, hidden"],
        ):
            assert fact in facts
        assert [fact[1].split(",")[0] for fact in facts if fact[0] == "upload"] == sorted(contents(converted))

    def test_without_network_token_or_proof(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        text = push(folder, "someone/x", dry_run=True).describe()
        assert "none, parity was not measured" in text
        assert "a new one as its owner's settings say" in text

    def test_after_the_push_it_says_what_went(self, folder: Path, hub: Hub) -> None:
        hub.create("someone/x")["parity.json"] = b""
        assert re.search(r"^remove +parity\.json", push(folder, "someone/x").describe(), flags=re.MULTILINE)


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _text(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


BAD_FOLDERS = {
    "no config": (_without("config.json"), r"has no config\.json with a model_type"),
    "other config": (_text("config.json", '{"architecture": "x"}'), r"has no config\.json with a model_type"),
    "broken config": (_text("config.json", "{"), r"config\.json cannot be read"),
    "no weights": (_without("model.safetensors"), r"has no model\.safetensors"),
    "cut weights": (
        lambda folder: os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1),
        r"model\.safetensors is damaged",
    ),
    "missing part": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        ),
        r"has no model-1\.safetensors",
    ),
    "interrupted": (_text(".weights.pt.1a2b.partial", ""), r"partial is what an interrupted conversion left"),
    "failed proof": (_text("parity.json", '{"verdict": "fail"}'), r"verdict in parity\.json is fail, not pass"),
    "empty proof": (_text("parity.json", "{}"), r"verdict in parity\.json is missing, not pass"),
}


class TestRefusals:
    @pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
    def test_folder(self, spoil: Any, message: str, folder: Path, hub: Hub) -> None:
        spoil(folder)
        for dry_run in (True, False):
            with pytest.raises(ValueError, match=message) as refusal:
                push(folder, "someone/model", dry_run=dry_run)
            assert "\n" not in str(refusal.value)
        assert hub.requests == []

    def test_everything_that_is_wrong_with_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "parity.json").write_text('{"verdict": "fail"}')
        with pytest.raises(ValueError, match=r"no config\.json.*; it has no model\.safetensors; the verdict"):
            push(tmp_path, "someone/model")

    def test_folder_of_an_interrupted_conversion(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="interrupted conversion"):
            push(folder.rename(folder.with_name(".model.1a2b.partial")), "someone/model", dry_run=True)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="x is no folder, expected one that holds a model"):
            push(tmp_path / "x", "someone/model")

    @pytest.mark.parametrize("name", ["", "a/b/c", "a b", "-a/b", "a/b--c"])
    def test_name(self, name: str, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"Expected a repository such as owner/name, got"):
            push(folder, name, dry_run=True)

    def test_metadata(self, folder: Path, hub: Hub) -> None:
        (folder / "README.md").write_text("---\nlicense: none of these\n---\n")
        with pytest.raises(ValueError, match=r"README\.md.*\n- .license. must be one of a list"):
            push(folder, "someone/model")
        assert hub.messages == []
        assert hub.objects == {}

    def test_no_token(self, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(PermissionError, match=r"someone/model needs a token, and none is stored\. Log in"):
            push(folder, "someone/model")
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("part", "status", "kind", "message"),
        [
            ("create", 401, PermissionError, "answered 401, Nobody knows why. Log in with `hf auth login`"),
            ("create", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("preupload", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("branch", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("revision", 404, OSError, "answered 404, Nobody knows why. There is no such repository"),
            ("batch", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("storage", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("commit", 403, PermissionError, "answered 403, Nobody knows why. The token may not do this"),
            ("commit", 412, OSError, "answered 412, Nobody knows why. Try again."),
        ],
    )
    def test_answers(self, part: str, status: int, kind: type, message: str, folder: Path, hub: Hub) -> None:
        hub.answers[part] = (status, "Nobody knows why.")
        with pytest.raises(kind, match="Pushing to someone/model failed: .*" + re.escape(message)) as refusal:
            push(folder, "someone/model", revision="v2")
        assert type(refusal.value) is kind
        assert "\n" not in str(refusal.value)
        assert hub.messages == []

    def test_wrong_token(self, folder: Path, hub: Hub) -> None:
        with pytest.raises(PermissionError, match=r"answered 401, Invalid username or password\. Log in"):
            push(folder, "someone/model", token="hf_of_nobody")

    def test_nobody_answers(self, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(OSError, match=r"failed: http://127\.0\.0\.1:9 cannot be reached \(.*refused"):
            push(folder, "someone/model")

    def test_offline(self, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match="HF_HUB_OFFLINE forbids to push"):
            push(folder, "someone/model")
        assert hub.requests == []


class TestCommand:
    @pytest.mark.thorough
    def test_push(self, folder: Path, hub: Hub) -> None:
        """In a process of its own, to which the environment says where the Hub is."""
        settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        options = ("--private", "--revision", "v2", "--commit-message", "Second.", "--json")
        done = subprocess.run(
            [sys.executable, "-m", "twinlens", "push", str(folder), "someone/model", *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "no_proxy": "*", **settings},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["url"] == f"{hub.address}/someone/model/commit/{1:040}"
        assert hub.branches["someone/model", "v2"].keys() == {".gitattributes", *contents(folder)}
        assert hub.private == {"someone/model": True}
        assert hub.messages == ["Second."]

    def test_dry_run(self, folder: Path, hub: Hub, run: Run) -> None:
        code, output, errors = run("push", folder, "someone/model", "--dry-run")
        assert (code, errors) == (0, "")
        assert output.startswith(push(folder, "someone/model", dry_run=True).describe())
        assert output.endswith("Nothing was sent: this was a dry run.\n")
        assert hub.requests == []

    def test_refusal_is_one_line(self, folder: Path, hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        code, output, errors = run("push", folder, "someone/model")
        assert (code, output) == (1, "")
        assert re.fullmatch(r"twinlens: Pushing to someone/model failed: .* Log in .*\n", errors)
