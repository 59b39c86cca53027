"""The catalogue against the official code and published sizes; downloads against servers on this machine."""

import ast
import hashlib
import importlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers.builders import TINY_CLIP, write_openai
from helpers.released_files import released_file, released_package
from helpers.servers import HEAD, Answer, dripping, file, redirect, saying, serving, without_end

from twinlens.catalogue import CATALOGUE, OfficialCheckpoint, bundled_checkpoint, official_checkpoint
from twinlens.catalogue import download as module
from twinlens.catalogue.download import (
    download_checkpoint,
    download_file,
    is_name,
    resolve_source,
)
from twinlens.catalogue.official_checkpoint import ResNet, Tower, Vocabulary
from twinlens.catalogue.published import ALIASES
from twinlens.configuration import FAMILIES
from twinlens.formats import read_checkpoint
from twinlens.formats.source import check_geometry
from twinlens.modeling import CLIPModel, CLIPVisionModel, DualEncoderModel, SiglipModel
from twinlens.processing import (
    CLIPImageProcessor,
    CLIPTokenizer,
    DualEncoderProcessor,
    SiglipImageProcessor,
    SiglipProcessor,
    SiglipTokenizer,
)

FACTS = ("address", "geometry", "text", "activation", "pixels", "license", "imagenet")
ENTRIES = list(CATALOGUE.values())
OPEN_CLIP = [entry for entry in ENTRIES if entry.format == "open_clip"]

# Of the Hub's folders of the same weights, as embeddings-benchmark/mteb, siglip_models.py, lists them; of OpenAI's
# as transformers counts them. The rest are millions in mlfoundations/open_clip@89fb801, docs/model_profile.csv.
PARAMETERS = {
    "RN50": 102007137,
    "RN101": 119688033,
    "RN50x4": 178300601,
    "RN50x16": 290979217,
    "RN50x64": 623258305,
    "ViT-B/32": 151277313,
    "siglip-base-patch16-224": 203155970,
    "siglip-base-patch16-512": 203791874,
    "siglip-large-patch16-384": 652478466,
    "siglip-so400m-patch14-224": 877360306,
    "siglip-so400m-patch14-384": 877960498,
    "siglip-base-patch16-256-multilingual": 370626050,
    "siglip-so400m-patch16-256-i18n": 1128758962,
    "siglip2-base-patch32-256": 376856066,
    "siglip2-large-patch16-512": 882313218,
    "siglip2-so400m-patch14-384": 1136008498,
    "siglip2-so400m-patch16-512": 1136555698,
    "siglip2-giant-opt-patch16-256": 1871393906,
    "siglip2-giant-opt-patch16-384": 1871885426,
}
MILLIONS = {
    "RN50": 102.01,
    "RN101": 119.69,
    "RN50x4": 178.30,
    "RN50x16": 290.98,
    "RN50x64": 623.26,
    "ViT-B/16": 149.62,
    "ViT-L/14": 427.62,
    "ViT-L/14@336px": 427.94,
    "ViT-B-32-256:datacomp_s34b_b86k": 151.29,
    "ViT-H-14:laion2b_s32b_b79k": 986.11,
    "ViT-H-14-378-quickgelu:dfn5b": 986.71,
    "ViT-g-14:laion2b_s34b_b88k": 1366.68,
    "ViT-bigG-14:laion2b_s39b_b160k": 2539.57,
}


def config(entry: OfficialCheckpoint) -> Any:
    """What `read_checkpoint` infers from the entry's file."""
    vocabulary = entry.vocabulary
    size = {"image_size": entry.grid * entry.patch} if entry.image_size else {"num_patches": entry.grid**2}
    towers: dict[str, dict[str, Any]] = {
        "vision_config": {"patch_size": entry.patch, **size},
        "text_config": {
            "vocab_size": vocabulary.size,
            "max_position_embeddings": entry.text_length,
            "pad_token_id": vocabulary.pad,
        },
    }
    if isinstance(entry.image, ResNet):
        width = 32 * entry.image.width
        resnet = {"hidden_size": width, "num_attention_heads": width // 64, "depths": entry.image.blocks}
        towers["vision_config"] = {"image_size": entry.image_size, "projection_dim": entry.embedding, **resnet}
    for name, tower in (("vision_config", entry.image), ("text_config", entry.text)):
        if isinstance(tower, ResNet):
            continue
        towers[name] |= {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "hidden_act": entry.activation or "gelu",
        }
    config_class = FAMILIES[entry.model_type].config
    if config_class.text_projection:
        towers["text_config"]["projection_dim"] = entry.embedding
        return config_class(projection_dim=entry.embedding, **towers)
    towers["text_config"]["projection_size"] = entry.embedding
    return config_class(**towers)


class TestEntries:
    @pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
    def test_is_consistent(self, entry: OfficialCheckpoint) -> None:
        assert CATALOGUE[entry.name] is entry
        assert entry.sha256 is None or entry.sha256 in entry.address
        assert entry.imagenet is None or 55 < entry.imagenet < 90
        assert all(entry.source_of(fact) for fact in FACTS)
        for tower in (entry.image, entry.text):
            assert isinstance(tower, ResNet) or tower.width % tower.heads == 0
        vocabularies = {"clip": {"clip"}, "clip_resnet": {"clip"}, "siglip": {"c4_en", "mc4"}, "siglip2": {"gemma"}}
        assert entry.vocabulary.name in vocabularies[entry.family]

    def test_no_name_twice(self) -> None:
        from twinlens.catalogue.published import _CHECKPOINTS

        assert len(_CHECKPOINTS) == len(CATALOGUE)
        assert len({entry.address for entry in _CHECKPOINTS}) == len(_CHECKPOINTS)

    @pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
    def test_has_a_valid_configuration(self, entry: OfficialCheckpoint) -> None:
        check_geometry(entry, config(entry))

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_parameters_are_those_published(self, name: str) -> None:
        assert CATALOGUE[name].parameters == PARAMETERS[name]

    @pytest.mark.parametrize("name", MILLIONS)
    def test_parameters_are_those_published_in_millions(self, name: str) -> None:
        assert round(CATALOGUE[name].parameters / 1e6, 2) == MILLIONS[name]

    @pytest.mark.parametrize(
        "name",
        [
            *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-bigG-14:laion2b_s39b_b160k"),
            *("siglip-so400m-patch14-384", "siglip2-giant-opt-patch16-256", "siglip2-so400m-patch16-naflex"),
        ],
    )
    def test_parameters_are_those_of_the_model(self, name: str) -> None:
        entry = CATALOGUE[name]
        with torch.device("meta"):
            model = DualEncoderModel(config(entry))
        assert entry.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def pretrained() -> Iterator[ModuleType]:
    """open_clip/pretrained.py with what it imports, without the package's `__init__` and what that needs."""
    package = ModuleType("released_open_clip")
    package.__path__ = [str(released_package("open_clip_torch==3.3.0") / "open_clip")]
    sys.modules[package.__name__] = package
    yield importlib.import_module("released_open_clip.pretrained")
    for name in [name for name in sys.modules if name.startswith(package.__name__)]:
        del sys.modules[name]


class TestOfficialCode:
    def test_openai(self) -> None:
        source = released_file("openai-clip==1.0.1", "clip/clip.py").read_text(encoding="utf-8")
        models = next(
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODELS"
        )
        assert models == {entry.name: entry.address for entry in ENTRIES if entry.format == "openai"}

    @pytest.mark.parametrize("entry", OPEN_CLIP, ids=lambda entry: entry.name)
    def test_open_clip_pretrained(self, entry: OfficialCheckpoint, pretrained: ModuleType) -> None:
        official = pretrained.get_pretrained_cfg(*entry.name.split(":"))
        assert entry.address == f"hf-hub:{official['hf_hub'].removesuffix('/')}"
        for name in ("mean", "std", "interpolation", "resize_mode"):
            assert getattr(entry.pixels, name) == official[name]
        quick = official.get("quick_gelu", False)
        assert entry.activation == (None if entry.name == "ViT-B-16:dfn2b" else "quick_gelu" if quick else "gelu")

    def test_open_clip_names_of_openai(self, pretrained: ModuleType) -> None:
        """open_clip downloads them from OpenAI's addresses, and computes quick GELU under every one of these names."""
        official = dict.fromkeys(model for model, tag in pretrained.list_pretrained() if tag == "openai")
        names = {name: entry for name, entry in ALIASES.items() if name.endswith(":openai")}
        assert {name.removesuffix(":openai") for name in names} == official.keys()
        for name, entry in names.items():
            cfg = pretrained.get_pretrained_cfg(*name.split(":"))
            assert (cfg["url"], cfg["quick_gelu"]) == (entry.address, True)
            assert official_checkpoint(name) is entry

    @pytest.mark.parametrize(
        "entry", [entry for entry in ENTRIES if entry.family == "clip"], ids=lambda entry: entry.name
    )
    def test_open_clip_geometry(self, entry: OfficialCheckpoint) -> None:
        model = entry.name.partition(":")[0].replace("/", "-").replace("@336px", "-336")
        folder = released_package("open_clip_torch==3.3.0") / "open_clip" / "model_configs"
        official = json.loads((folder / f"{model}.json").read_text())
        vision, text = official["vision_cfg"], official["text_cfg"]
        assert (entry.embedding, entry.image_size) == (official["embed_dim"], vision["image_size"])
        assert (entry.text_length, entry.vocabulary.size) == (text["context_length"], text["vocab_size"])
        assert entry.text == Tower(text["width"], text["layers"], text["heads"], 4 * text["width"])
        if isinstance(entry.image, ResNet):
            assert entry.image == ResNet(vision["width"], tuple(vision["layers"]))
        else:
            width = vision["width"]
            mlp = int(width * vision.get("mlp_ratio", 4.0))
            assert entry.patch == vision["patch_size"]
            assert entry.image == Tower(width, vision["layers"], width // vision.get("head_width", 64), mlp)


class TestLookup:
    def test_exact_names_only(self) -> None:
        assert official_checkpoint("ViT-B/32").name == "ViT-B/32"
        with pytest.raises(
            ValueError, match=r"'vit-b-32'\. Did you mean .*'ViT-B/32'.*twinlens list` shows all \d+\.$"
        ):
            official_checkpoint("vit-b-32")
        with pytest.raises(ValueError, match=r"is called 'xyz'\. `twinlens list`"):
            official_checkpoint("xyz")

    def test_geometry_compares_grids(self) -> None:
        entry = CATALOGUE["siglip-so400m-patch14-384"]
        inferred = config(entry)
        assert (entry.image_size, inferred.vision_config.image_size) == (384, 378)
        check_geometry(entry, inferred)

    def test_geometry_names_every_difference(self, tmp_path: Path) -> None:
        write_openai(tmp_path / "clip.pt", **TINY_CLIP)
        with pytest.raises(ValueError, match="not the official ViT-B/32") as caught:
            check_geometry(CATALOGUE["ViT-B/32"], read_checkpoint(tmp_path / "clip.pt").config)
        for part in (
            *("image grid 2, expected 7", "patch 16, expected 32", "image width 128, expected 768"),
            *("text layers 2, expected 12", "embedding 48, expected 512", "vocabulary 99, expected 49408"),
        ):
            assert part in str(caught.value)
        assert "pad id" not in str(caught.value)

    def test_geometry_tells_families_apart(self) -> None:
        siglip = config(CATALOGUE["siglip-base-patch16-224"])
        with pytest.raises(ValueError, match=r"family 'siglip', expected 'clip'.*activation 'gelu_pytorch_tanh'"):
            check_geometry(CATALOGUE["ViT-B/16"], siglip)
        with pytest.raises(ValueError, match="vocabulary 32000, expected 256000; pad id 1, expected 0"):
            check_geometry(CATALOGUE["siglip2-base-patch16-224"], siglip)
        naflex, fixed = (CATALOGUE[f"siglip2-base-patch16-{size}"] for size in ("naflex", "256"))
        with pytest.raises(ValueError, match=r"This is not the .*-naflex: family 'siglip', expected 'siglip2'\.$"):
            check_geometry(naflex, config(fixed))
        with pytest.raises(ValueError, match=r"This is not the .*-256: family 'siglip2', expected 'siglip'\.$"):
            check_geometry(fixed, config(naflex))
        with pytest.raises(ValueError, match=r"image blocks None, expected \(3, 4, 6, 3\)"):
            check_geometry(CATALOGUE["RN50"], siglip)


class Server(ThreadingHTTPServer):
    """Sends `files`; `breaks` are numbers of bytes after which the next answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks: list[int] = []
        self.parts = True  # whether ranges are understood
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.server.files.get(self.path, b""))

    def _answer(self, body: bytes) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append((self.command, self.path, wanted))
        if self.path not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = self.server.files[self.path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.parts else 0
        self.send_response(206 if wanted and self.server.parts else 200)
        if wanted and self.server.parts:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        body = body[start:]
        if body and self.server.breaks:
            body = body[: self.server.breaks.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an empty HF_HOME."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "RETRY_PAUSE_SECONDS", 0.0)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    server = Server()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


BODY = bytes(range(256)) * 20_000  # 5 MB
SHA256 = hashlib.sha256(BODY).hexdigest()


def ranges(server: Server) -> list[str | None]:
    return [wanted for method, _, wanted in server.requests if method == "GET"]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


class TestDownload:
    def test_once(self, server: Server, tmp_path: Path) -> None:
        server.files["/models/a.pt"] = BODY
        steps: list[str] = []
        path = download_file(f"{server.address}/models/a.pt", sha256=SHA256, progress=steps.append)
        assert path == tmp_path / "home" / "twinlens" / "127.0.0.1" / "models" / "a.pt"
        assert path.read_bytes() == BODY
        assert steps[-1] == "downloading a.pt: 5 of 5 MB"
        assert left(tmp_path / "home") == ["a.pt"]
        requests = len(server.requests)
        assert download_file(f"{server.address}/models/a.pt") == path
        assert len(server.requests) == requests

    def test_goes_on_where_the_line_broke(self, server: Server) -> None:
        server.files["/a.pt"] = BODY
        server.breaks = [1_000_000, 2_000_000]
        assert download_file(f"{server.address}/a.pt", sha256=SHA256).read_bytes() == BODY
        assert ranges(server) == ["bytes=0-", "bytes=1000000-", "bytes=3000000-"]

    def test_goes_on_where_an_earlier_run_gave_up(self, server: Server, tmp_path: Path) -> None:
        server.files["/a.pt"] = BODY
        server.breaks = [1_000_000, 0, 0, 0]
        with pytest.raises(
            OSError, match=r"a\.pt failed: the connection broke after 1,000,000 of 5,120,000 bytes\. Once"
        ):
            download_file(f"{server.address}/a.pt")
        assert [Path(name).suffix for name in left(tmp_path / "home")] == [".incomplete"]
        server.requests.clear()
        assert download_file(f"{server.address}/a.pt").read_bytes() == BODY
        assert ranges(server) == ["bytes=1000000-"]
        assert left(tmp_path / "home") == ["a.pt"]

    def test_begins_again_where_the_file_is_another(self, server: Server) -> None:
        server.files["/a.pt"] = BODY
        server.breaks = [1_000_000, 0, 0, 0]
        with pytest.raises(OSError, match="broke"):
            download_file(f"{server.address}/a.pt")
        server.files["/a.pt"] = BODY[::-1]
        assert download_file(f"{server.address}/a.pt").read_bytes() == BODY[::-1]

    def test_begins_again_where_the_server_sends_no_parts(self, server: Server) -> None:
        server.files["/a.pt"] = BODY
        server.parts = False
        server.breaks = [1_000_000]
        assert download_file(f"{server.address}/a.pt", sha256=SHA256).read_bytes() == BODY

    def test_gives_up_where_the_server_sends_no_parts_and_never_all(self, server: Server) -> None:
        server.files["/a.pt"] = BODY
        server.parts = False
        server.breaks = [2_000, 1_000] * 9
        with pytest.raises(OSError, match="the connection broke"):
            download_file(f"{server.address}/a.pt")
        assert len(ranges(server)) == 1 + module.MAX_FAILED_ATTEMPTS

    def test_wrong_hash_leaves_nothing(self, server: Server, tmp_path: Path) -> None:
        server.files["/a.pt"] = BODY
        with pytest.raises(OSError, match=f"should have the sha256 {'0' * 64}, but what arrived has {SHA256}"):
            download_file(f"{server.address}/a.pt", sha256="0" * 64)
        assert left(tmp_path / "home") == []

    def test_missing_file(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(
            OSError, match=r"/a\.pt failed: HTTP Error 404: Not Found\. Once you have the file"
        ) as caught:
            download_file(f"{server.address}/a.pt")
        assert "\n" not in str(caught.value)
        assert left(tmp_path / "home") == []

    def test_no_network(self, server: Server) -> None:
        with pytest.raises(OSError, match=r"failed: .*refused"):
            download_file("http://127.0.0.1:9/a.pt")

    def test_offline(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.files["/a.pt"] = BODY
        path = download_file(f"{server.address}/a.pt")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert download_file(f"{server.address}/a.pt") == path
        with pytest.raises(OSError, match=r"b\.pt was not downloaded before, and HF_HUB_OFFLINE forbids it"):
            download_file(f"{server.address}/b.pt")

    def test_no_room(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        server.files["/a.pt"] = BODY
        monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"failed: it has 5,120,000 bytes, .* has room for 1,000\."):
            download_file(f"{server.address}/a.pt")
        assert ranges(server) == []

    def test_unknown_length(self, server: Server) -> None:
        server.files["/a.pt"] = b""
        with pytest.raises(OSError, match="does not say how long"):
            download_file(f"{server.address}/a.pt")

    @pytest.mark.parametrize(
        ("got", "message"),
        [
            (without_end(HEAD + b"\r\n"), "the server sends more than the 100 bytes that it had promised"),
            (file(bytes(101)), "the server sends more than the 100 bytes"),
            (saying(b"HTTP/1.1 206 X\r\nContent-Range: bytes 7-99/100\r\n\r\n"), "sends another part of the file"),
            (redirect("file:///etc/passwd"), "it leads to an address of file, expected http or https"),
            (file(bytes(50)), "the connection broke after 50 of 100 bytes"),
            (dripping(b"", HEAD + b"\r\n", seconds=10), r"it took more than 0\.3 s"),
            (saying(b"220 mail.example\r\n"), r"the server's answer is not HTTP \(BadStatusLine\)"),
        ],
    )
    def test_servers_that_break_their_promise(
        self, got: Answer, message: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A file of 100 bytes is promised, and then something else sent; nobody waits for it, nothing of it counts."""

        def answer(connection: socket.socket, request: bytes) -> object:
            return (file(b"", promised=100) if request.startswith(b"HEAD") else got)(connection, request)

        monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
        with (
            serving(answer) as address,
            pytest.raises(OSError, match=rf"Downloading http://{address}/a\.pt\?\.\.\. failed: .*{message}"),
        ):
            download_file(f"http://{address}/a.pt?key=secret")
        assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("*.incomplete")) in (0, 50)

    @pytest.mark.parametrize("length", ["-5", "x", "1" * 5000, "0", "1.5"])
    def test_lengths_that_are_none(self, length: str, server: Server) -> None:
        answer = saying(HEAD, f"Content-Length: {length}\r\n\r\n".encode())
        with serving(answer) as address, pytest.raises(OSError, match="does not say how long"):
            download_file(f"http://{address}/a.pt")

    def test_two_at_a_time_download_once(self, server: Server) -> None:
        server.files["/a.pt"] = BODY
        with ThreadPoolExecutor(4) as pool:
            paths = set(pool.map(download_file, [f"{server.address}/a.pt"] * 4))
        assert [path.read_bytes() for path in paths] == [BODY]
        assert len(ranges(server)) == 1


class TestHub:
    ENTRY = CATALOGUE["ViT-B-32:laion2b_s34b_b79k"]
    FOLDER = "/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main"

    def test_configuration_lies_beside_the_weights(self, server: Server, tmp_path: Path) -> None:
        for name in ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            server.files[f"{self.FOLDER}/{name}"] = name.encode() + BODY
        steps: list[str] = []
        path = download_checkpoint(self.ENTRY, progress=steps.append)
        assert path.name == "open_clip_model.safetensors"
        assert path.read_bytes() == b"open_clip_model.safetensors" + BODY
        assert (path.parent / "open_clip_config.json").read_bytes().startswith(b"open_clip_config.json")
        assert tmp_path / "home" / "hub" in path.parents
        assert steps[-1] == "downloading laion/CLIP-ViT-B-32-laion2B-s34B-b79K: 5 of 5 MB"

    @pytest.mark.thorough  # the library tries again for five seconds
    def test_a_broken_line(self, server: Server) -> None:
        """Whatever the library of the day raises for it."""
        head = HEAD + b"ETag: a\r\nX-Repo-Commit: " + b"0" * 40 + b"\r\nContent-Length: 1000\r\n\r\n"

        def answer(connection: socket.socket, request: bytes) -> None:
            connection.sendall(head if request.startswith(b"HEAD") else head + bytes(100))

        name = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        with pytest.MonkeyPatch.context() as patch, serving(answer) as address:
            patch.setattr(
                huggingface_hub.constants,
                "HUGGINGFACE_CO_URL_TEMPLATE",
                f"http://{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            )
            patch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://{address}")
            with pytest.raises(OSError, match=f"Downloading {name} from the Hub failed: "):
                download_checkpoint(self.ENTRY)

    def test_pickled_weights_where_there_are_no_others(self, server: Server) -> None:
        server.files[f"{self.FOLDER}/open_clip_pytorch_model.bin"] = BODY
        assert download_checkpoint(self.ENTRY).read_bytes() == BODY

    def test_nothing_there(self, server: Server) -> None:
        with pytest.raises(OSError, match="Downloading laion/CLIP-ViT-B-32-laion2B-s34B-b79K from the Hub failed: "):
            download_checkpoint(self.ENTRY)

    def test_other_entries_are_checked(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, str | None]] = []
        monkeypatch.setattr(module, "download_file", lambda url, *, sha256, progress: calls.append((url, sha256)))
        entry = CATALOGUE["ViT-B/32"]
        download_checkpoint(entry)
        assert calls == [(entry.address, entry.sha256)]


class TestResolveSource:
    def test_path_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "RN50").touch()
        assert resolve_source("RN50") == (Path("RN50"), None)

    def test_name_is_downloaded(self, server: Server) -> None:
        server.files[f"{TestHub.FOLDER}/open_clip_model.safetensors"] = BODY
        path, entry = resolve_source(TestHub.ENTRY.name)
        assert path.read_bytes() == BODY
        assert entry is TestHub.ENTRY

    def test_neither(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"^ViT-B/23: no such file\. No official .* 'ViT-B/32'"):
            resolve_source("ViT-B/23")


class TestNames:
    """`from_pretrained` and the processors take the names that the command line takes."""

    @pytest.fixture
    def named(self, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OfficialCheckpoint:
        """A catalogue that says of ViT-B/32 what the bundled CLIP is, and of its address that it is at the server."""
        weights, vocabulary = (path.read_bytes() for path in bundled_checkpoint("clip-shapes"))
        server.files |= {"/clip.pt": weights, "/vocabulary.gz": vocabulary}
        config = read_checkpoint(bundled_checkpoint("clip-shapes").weights).config
        vision, text = (
            Tower(part.hidden_size, part.num_hidden_layers, part.num_attention_heads, part.intermediate_size)
            for part in (config.vision_config, config.text_config)
        )
        sha256 = hashlib.sha256(vocabulary).hexdigest()
        entry = replace(
            CATALOGUE["ViT-B/32"],
            address=f"{server.address}/clip.pt",
            sha256=hashlib.sha256(weights).hexdigest(),
            image=vision,
            text=text,
            patch=config.vision_config.patch_size,
            image_size=config.vision_config.image_size,
            embedding=config.projection_dim,
            text_length=config.text_config.max_position_embeddings,
            vocabulary=Vocabulary(
                "shapes", config.text_config.vocab_size, 0, f"{server.address}/vocabulary.gz", sha256, ""
            ),
        )
        monkeypatch.setitem(CATALOGUE, "ViT-B/32", entry)
        return entry

    def test_published(self, named: OfficialCheckpoint, server: Server) -> None:
        bundled = DualEncoderProcessor.from_pretrained("clip-shapes")
        expected = CLIPModel.from_pretrained("clip-shapes").encode_text(**bundled(text="a red star"))
        model, processor = (c.from_pretrained(named.name) for c in (DualEncoderModel, DualEncoderProcessor))
        assert torch.equal(model.encode_text(**processor(text="a red star")), expected)
        assert isinstance(CLIPTokenizer.from_pretrained(named.name), CLIPTokenizer)
        assert CLIPImageProcessor.from_pretrained(named.name).crop_size == bundled.image_processor.crop_size
        assert [path for method, path, _ in server.requests if method == "GET"] == ["/clip.pt", "/vocabulary.gz"]

    def test_is_checked(self, named: OfficialCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CATALOGUE, named.name, replace(named, sha256="0" * 64))
        with pytest.raises(OSError, match=f"should have the sha256 {'0' * 64}"):
            CLIPModel.from_pretrained(named.name)
        monkeypatch.setitem(CATALOGUE, named.name, replace(named, text_length=9))
        for loads in (DualEncoderModel, CLIPModel, DualEncoderProcessor, CLIPTokenizer):
            with pytest.raises(ValueError, match="not the official ViT-B/32: text length"):
                loads.from_pretrained(named.name)

    def test_bundled(self) -> None:
        assert isinstance(DualEncoderModel.from_pretrained("siglip-shapes"), SiglipModel)
        assert isinstance(SiglipProcessor.from_pretrained("siglip-shapes").tokenizer, SiglipTokenizer)
        assert isinstance(SiglipImageProcessor.from_pretrained("siglip-shapes"), SiglipImageProcessor)
        with pytest.raises(TypeError, match="takes a SiglipConfig, got a CLIPConfig"):
            SiglipModel.from_pretrained("clip-shapes")
        with pytest.raises(ValueError, match="clip-shapes has a CLIPTokenizer, not a SiglipTokenizer"):
            SiglipTokenizer.from_pretrained("clip-shapes")

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("clip-shape", "'clip-shapes'"),
            ("ViT-B-32:openia", "'ViT-B-32:openai'"),
            ("siglip2-base-patch16-255", "'siglip2-base-patch16-256'"),
            ("ViT-B/23", "'ViT-B/32'"),  # could be on the Hub
        ],
    )
    def test_misspelt(self, name: str, nearest: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        for loads in (DualEncoderModel, CLIPVisionModel, DualEncoderProcessor, SiglipImageProcessor, CLIPTokenizer):
            with pytest.raises((OSError, ValueError), match=nearest):
                loads.from_pretrained(name)

    def test_paths_come_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        CLIPModel.from_pretrained("clip-shapes").save_pretrained("siglip-shapes")
        assert not is_name("siglip-shapes")
        assert isinstance(DualEncoderModel.from_pretrained("siglip-shapes"), CLIPModel)
        assert is_name("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
        assert is_name("timm/vit_base_patch32_clip_224.metaclip_400m")
        assert not is_name("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")  # transformers loads it
        assert not is_name(None)
        assert not is_name("google/siglip-base-patch16-224")
