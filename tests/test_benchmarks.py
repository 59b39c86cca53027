"""Benchmarks start, measure at their smallest, and the tables of docs/benchmarks.md are those of their results."""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers.versions import NEEDS_AUTO_IMAGE_PROCESSOR
from PIL import Image

import twinlens

FOLDER = Path(__file__).parent.parent / "benchmarks"
MODULES = (
    "common",
    "gpu_towers",
    "inputs",
    "peers",
    "plots",
    "products",
    "trainers",
    "training_cost",
)  # of several scripts
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in MODULES)
TINY_TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """A script finds `common` beside itself, and sets threads for its process."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    yield
    for name in (*MODULES, "fine_tuning", "training"):  # two scripts that others import
        sys.modules.pop(name, None)


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_docstring(name, monkeypatch, capsys):
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    printed = capsys.readouterr().out
    assert module.__doc__.strip() in printed
    assert all(
        option in printed.split(module.__doc__.strip())[1]
        for option in ("--help", "--check" if name == "tables" else "--json")
    )


class TestSmallestSettings:
    def test_memory(self, monkeypatch):
        memory = load("memory")
        sizes = {**TINY_TOWER, "image_size": 8, "patch_size": 4}
        monkeypatch.setattr(memory, "MODELS", {"tiny": ("CLIP", sizes)})
        monkeypatch.setattr(memory, "in_fresh_process", lambda script, *given: memory.peak_mib(*given))
        cases = memory.measure("tiny", "float32", batch_size=2)
        assert [case["attention"] for case in cases] == ["sdpa", "eager"]
        assert all(case["twinlens_mib"] > 0 for case in cases)

    @NEEDS_AUTO_IMAGE_PROCESSOR
    def test_embedding_job(self, monkeypatch, tmp_path):
        benchmark = load("embedding_job")
        sizes = {**TINY_TOWER, "image_size": 224, "patch_size": 112}
        benchmark.write_model(tmp_path / "model", "Siglip", {"vision_config": sizes, "text_config": TINY_TOWER})
        twinlens.SiglipImageProcessor().save_pretrained(tmp_path / "model")
        files = benchmark.write_photographs(tmp_path / "photographs", 3)
        cases = benchmark.measure_speed(tmp_path / "model", files, 2, tmp_path)
        pairs = [(library, dtype) for library in ("twinlens", "transformers") for dtype in ("float32", "bfloat16")]
        assert sorted(case["variant"] for case in cases) == sorted(map(", ".join, pairs))
        assert all(case["images"] == 3 and case["images_per_s"] > 0 for case in cases)
        index = twinlens.index.Index.open(tmp_path / "index-float32-0")
        model = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
        expected = benchmark.loop_over(model, processor, files[:2])  # what is compared computes the same
        assert (torch.tensor(index.shards[0]) * expected).sum(dim=1).min() > 0.999
        monkeypatch.setattr(benchmark, "in_fresh_process", lambda script, *given: benchmark.peak_of_job(*given))
        (memory,) = benchmark.measure_memory(files, [4], tmp_path)
        assert memory["images"] == 4

    def test_fine_tuning(self, monkeypatch, tmp_path):
        benchmark = load("fine_tuning")
        monkeypatch.setattr(benchmark, "MEASURED", 10)
        monkeypatch.setattr(benchmark, "WORLDS", {"digits": benchmark.WORLDS["digits"]})
        train = benchmark.train
        monkeypatch.setattr(benchmark, "train", lambda plan: train(dataclasses.replace(plan, steps=1)))
        cases = [*benchmark.measure_pairs([8])]
        assert [(case["mode"], case["pairs"]) for case in cases] == [("all weights", 8), ("LoRA", 8)]
        assert all(0 <= case["accuracy"] <= 1 for case in cases)
        model = twinlens.DualEncoderModel.from_pretrained(benchmark.START)
        assert benchmark.accuracy(model, benchmark.old_words(20), "a {}") > 0.9  # words that it knows
        benchmark.draw(cases, tmp_path / "plot.svg")
        assert "</svg>" in (tmp_path / "plot.svg").read_text()

    def test_towers(self, monkeypatch, tmp_path):
        towers = load("towers")
        sizes = {**TINY_TOWER, "image_size": 8, "patch_size": 4}
        monkeypatch.setattr(towers, "MODELS", {"tiny": ("CLIP", {"vision_config": sizes, "text_config": TINY_TOWER})})
        monkeypatch.setattr(towers, "compiled", lambda module: module)
        absent = dict.fromkeys(towers.peers.PACKAGES, "left out")
        options = argparse.Namespace(rounds=2, seconds=0)
        (case,) = towers.measure_model("tiny", tmp_path, [("float32", 2)], absent, options)
        assert case["case"] == "tiny-float32-2"
        assert case["runs"] == 1  # the second round is beyond the seconds
        assert case["ms"].keys() == case["error"].keys() >= {"twinlens", "twinlens, optimised", "transformers, sdpa"}
        assert max(case["error"].values()) < 1e-6

    def test_gpu_towers(self, monkeypatch, tmp_path):
        """On the CPU, for want of a GPU."""
        gpu_towers = load("gpu_towers")
        monkeypatch.setattr(gpu_towers, "compiled", lambda module: module)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        sizes = {**TINY_TOWER, "image_size": 8, "patch_size": 4}
        gpu_towers.write_model(tmp_path, "Siglip", {"vision_config": sizes, "text_config": TINY_TOWER})
        options = argparse.Namespace(device="cpu", rounds=1, seconds=0)
        case = gpu_towers.measure(tmp_path, 8, 2, {"open_clip": "left out"}, options)
        assert case["ms"].keys() == case["difference_to_transformers"].keys() >= {"twinlens, compiled"}
        assert max(case["difference_to_transformers"].values()) < 1e-3
        assert case["out_of_memory"] == []

    def test_without_a_gpu_the_results_say_so(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        file = tmp_path / "gpu.json"
        monkeypatch.setattr(sys, "argv", ["towers.py", "--device", "cuda", "--noisy", "--json", str(file)])
        load("towers").main()
        assert "not measured: no GPU" in capsys.readouterr().out
        assert json.loads(file.read_text())["not_measured"] == {"all": "no GPU"}

    def test_text_encoding(self, monkeypatch, tmp_path):
        texts = load("text_encoding")
        captions = texts.captions(20)
        assert len({*captions}) == 20
        monkeypatch.setattr(
            texts, "MODELS", {"tiny": ("CLIP", {"vision_config": TINY_TOWER, "text_config": TINY_TOWER})}
        )
        texts.write_model(tmp_path, *texts.MODELS["tiny"])
        texts.write_processor(tmp_path, "CLIP")
        absent = dict.fromkeys(("open_clip", "openai-clip"), "left out")
        with torch.no_grad():
            expected = texts.reference("tiny", tmp_path, captions[:4])
        for variants in texts.variants_of("tiny", tmp_path, captions, absent).values():
            case = texts.measure("tiny", variants, expected, argparse.Namespace(rounds=1))
            assert case["ms_each"].keys() >= {"twinlens", "twinlens, optimised", "transformers"}
            assert max(case["error"].values()) < 1e-6

    @pytest.mark.thorough
    def test_zero_shot(self, monkeypatch, tmp_path):
        zero_shot = load("zero_shot")
        sizes = {"vision_config": {**TINY_TOWER, "patch_size": 112}, "text_config": TINY_TOWER}
        monkeypatch.setattr(zero_shot, "MODELS", {"tiny": ("CLIP", sizes)})
        options = argparse.Namespace(labels=3, rounds=1, all=False)
        case = zero_shot.measure("tiny", tmp_path, zero_shot.photographs(2), options)
        assert len(case["ms_each"]) == 4
        assert max(case["score_difference"].values()) < 1e-4

    def test_start(self, monkeypatch, tmp_path):
        start, inputs = load("start"), load("inputs")
        sizes = {"vision_config": {**TINY_TOWER, "patch_size": 112}, "text_config": TINY_TOWER}
        inputs.write_model(tmp_path, "CLIP", sizes)
        inputs.write_processor(tmp_path, "CLIP")
        monkeypatch.setattr(start, "in_fresh_process", lambda script, *given: start.first_answer(*given))
        cases = start.measure(tmp_path, Path(twinlens.catalogue.PHOTOGRAPH), rounds=1)
        assert [case["library"] for case in cases] == ["twinlens", "transformers"]
        assert cases[0]["difference"] < 1e-3

    def test_search(self, monkeypatch, tmp_path):
        """faiss and LanceDB are measured where they are installed."""
        search, inputs = load("search"), load("inputs")
        sizes = {"vision_config": {**TINY_TOWER, "patch_size": 112}, "text_config": TINY_TOWER, "projection_dim": 8}
        inputs.write_model(tmp_path / "model", "CLIP", sizes)
        inputs.write_processor(tmp_path / "model", "CLIP")
        weights = twinlens.index.weights_fingerprint(twinlens.inference.load_exact_model(tmp_path / "model"))
        monkeypatch.setattr(search, "ROWS_OF_SHARD", 30)
        monkeypatch.setattr(search, "in_fresh_process", lambda script, *given: search.first_answer(*given))
        options = argparse.Namespace(dim=8, rounds=1, only="")
        cases = search.measure(tmp_path / "index", 70, tmp_path / "model", weights, options)
        (answers,) = cases["answers"]
        assert answers["ms"].keys() >= {"twinlens, 1", "twinlens, 100"}
        assert answers.get("same_rows", 1.0) == 1.0
        assert cases["first"][0].keys() > {"rows", "library", "total_s", "peak_mb", "search_mb", *search.PARTS}
        assert all(case["same_rows"] == 1 for case in cases["first"])
        assert all(case["recall_at_10"] == 1 for case in cases["lance"])

    def test_naflex(self, monkeypatch):
        naflex = load("naflex")
        monkeypatch.setattr(naflex, "SIZES", {**TINY_TOWER, "patch_size": 2, "num_patches": 4})
        case = naflex.measure("float32", batch_size=8, rounds=1)
        assert case["padding"] == 0.438  # of ratios from 1 to 4
        assert case["embedding_difference"] <= 5e-6

    @pytest.mark.parametrize("name", ["sigmoid", "softmax"])
    def test_losses(self, name):
        losses = load("losses")
        assert losses.compare_speed(name, pairs=64, rounds=1)["loss_difference"] < 1e-5
        measured = losses.peak_of_loss(losses.twinlens_loss(name), *losses.unit_vectors(64))
        assert 0 <= measured["mib"] < measured["resident_mib"]

    def test_images(self):
        processing = load("processing")
        pictures = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
        theirs = processing.CLIPImageProcessorPil()
        cases = processing.compare_image_processors(
            "CLIP, JPEG bytes",
            twinlens.CLIPImageProcessor(),
            {"transformers": lambda images: theirs(images, return_tensors="pt")},
            [processing.to_jpeg(picture) for picture in pictures],
            rounds=1,
        )
        assert [case["variant"] for case in cases] == [*(f"twinlens, {e}" for e in processing.ENGINES), "transformers"]
        assert cases[-1]["speed_over_transformers"] == 1

    def test_texts(self, tmp_path):
        processing = load("processing")
        ours = twinlens.CLIPTokenizer.from_official()
        ours.save_pretrained(tmp_path)
        theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
        cases = processing.compare_tokenizers("CLIP", ours, {"transformers": theirs}, processing.random_captions(10))
        assert [(case["variant"], case["captions"]) for case in cases] == [("twinlens", 10), ("transformers", 10)]

    @pytest.mark.thorough
    def test_training(self, monkeypatch):
        """open_clip is measured where it is installed."""
        training = load("training")
        monkeypatch.setattr(training, "BATCH", 32)
        libraries = ["twinlens", "transformers"]
        curves = {(case["case"], case["library"]): case["value"] for case in training.measure_curves(libraries, 2)}
        found = {
            (case["case"], case["library"]): case["value"] for case in training.measure_gradients("parts", libraries)
        }
        assert max(curves["curve", library] for library in libraries) < 1e-5
        assert curves["curve, equal captions", "twinlens"] < 1e-5 < curves["curve, equal captions", "transformers"]
        assert (
            max(found["parts", "twinlens"], found["parts, scale", "twinlens"]) < 1e-5 < found["parts", "transformers"]
        )

    @pytest.mark.thorough
    def test_cost_of_training(self, monkeypatch):
        cost = load("training_cost")
        for name, value in {"TOWER": TINY_TOWER, "BATCH": 2, "TIMED_UPDATES": 2, "LARGE_BATCH": 4, "PARTS": 2}.items():
            monkeypatch.setattr(cost, name, value)
        measure = cost.peak_of_updates
        monkeypatch.setattr(cost, "in_fresh_process", lambda script, *given: measure(*given))
        libraries = ["twinlens", "transformers"]
        assert all(case["value"] >= 0 for case in cost.measure_memory(libraries, pairs=4))
        speeds = [*cost.measure_speed(libraries, rounds=1)]
        assert [case["library"] for case in speeds] == 4 * libraries  # rates and ratios
        assert all(case["value"] > 0 for case in speeds)
        assert [case["value"] for case in speeds if "ratio" in case["case"]][1::2] == [1, 1]

    @pytest.mark.thorough
    def test_training_of_two_processes_and_with_defaults(self, monkeypatch):
        training = importlib.import_module("training")  # by a name under which the two processes find it
        monkeypatch.setattr(training, "BATCH", 16)
        (ranks, scale) = training.measure_gradients("ranks", ["twinlens"])
        assert max(ranks["value"], scale["value"]) < 1e-5
        train = training.train
        monkeypatch.setattr(training, "train", lambda plan: train(dataclasses.replace(plan, steps=2)))
        monkeypatch.setattr(training, "DEFAULT_EPOCHS", {"transformers": 1})
        cases = [*training.measure_accuracy(["twinlens", "transformers"], count=100)]
        assert [case["library"] for case in cases] == ["twinlens"] * 2 + ["transformers"] * 2
        assert all(0 <= case["value"] <= 1 and case["updates"] > 0 for case in cases)

    def test_conversion(self, tmp_path, capsys):
        conversion = load("conversion")
        source = tmp_path / "model.npz"
        geometry = conversion.Geometry(2, 16, 32, layers=1, heads=2, mlp_width=64, vocabulary_size=50, text_length=4)
        conversion.write_source(source, geometry)
        assert conversion.copy_and_hash(source, tmp_path / "copy.npz") > 0
        seconds, peak_bytes = conversion.run_command(["convert", str(source), str(tmp_path / "folder"), "--no-verify"])
        assert 0 < seconds < peak_bytes
        assert (tmp_path / "folder" / "model.safetensors").exists()

    def test_a_fresh_process_and_results(self, tmp_path, monkeypatch):
        common = load("common")
        script = tmp_path / "script.py"
        script.write_text("import json, sys\nprint('a message')\nprint(json.dumps(sys.argv[1:]))\n")
        assert common.in_fresh_process(str(script), 3, None) == ["--in-process", "3", "None"]
        monkeypatch.setattr(common.time, "sleep", lambda seconds: None)
        options = argparse.Namespace(json=tmp_path / "results.json", load=common.Load())
        common.write_results(options, [{"case": "a"}], "numpy", "not-installed", more=1)
        written = json.loads((tmp_path / "results.json").read_text())
        assert written["cases"] == [{"case": "a"}]
        assert written["more"] == 1
        assert written["load_during"]["other_cores"] >= 0
        assert {"average", "other_cores"} == written["load_before"].keys() == written["load_after"].keys()
        assert {"twinlens", "torch", "transformers", "numpy", "python", "threads"} < written["environment"].keys()

    def test_products(self, monkeypatch):
        products = load("products")
        monkeypatch.setattr(products, "SHAPES", [(4, 32, 64), (4, 64, 32)])
        libraries = {name: value for name, value in products.LIBRARIES.items() if name in ("PyTorch", "NumPy")}
        monkeypatch.setattr(products, "LIBRARIES", libraries)
        assert {case["library"] for case in products.best_products("float32", {})} == {"PyTorch", "NumPy"}
        assert [case["library"] for case in products.best_products("bfloat16", {})] == ["PyTorch"]
        x, weight = torch.randn(4, 32), torch.randn(64, 32)
        for make in (products.torch_product, products.onednn_product, products.numpy_product):
            torch.testing.assert_close(torch.as_tensor(make(x, weight)()), x @ weight.T, rtol=1e-4, atol=1e-4)


class TestQuietMachine:
    """Other processes are those that /proc/stat counts beyond this one."""

    def load_of(self, monkeypatch, other_cores):
        common = load("common")
        clock = iter(range(100))
        monkeypatch.setattr(common.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
        seconds = ((7 + (1 + other_cores) * number, 1.0 * number) for number in range(100))  # this process: one core
        monkeypatch.setattr(common, "cpu_seconds", lambda: next(seconds))
        return common

    @pytest.mark.parametrize("other_cores", [0.0, 0.05, 0.5, 2.0])
    def test_busy_machines_are_refused(self, other_cores, monkeypatch):
        common = self.load_of(monkeypatch, other_cores)
        monkeypatch.setattr(sys, "argv", ["script.py"])
        if other_cores < 0.1:
            options = common.parse_options(common.option_parser("A script."))
            assert options.load.before["other_cores"] == other_cores
        else:
            with pytest.raises(SystemExit, match=rf"Other processes keep {other_cores} cores busy, .* --noisy"):
                common.parse_options(common.option_parser("A script."))
        monkeypatch.setattr(sys, "argv", ["script.py", "--noisy"])
        options = common.parse_options(common.option_parser("A script."))
        assert options.load.as_json()["load_during"]["other_cores"] == other_cores

    def test_own_work_is_not_counted(self):
        common = load("common")
        busy, own = common.cpu_seconds()
        total = sum(number for number in range(3_000_000))
        busy, own = (now - then for now, then in zip(common.cpu_seconds(), (busy, own), strict=True))
        assert total > 0
        assert 0.01 < own < busy + 0.1


def page_of(tables):
    names = [("table", name) for name in tables.TABLES] + [("plot", name) for name in tables.PLOTS]
    return "".join(f"<!-- {kind}: {name} -->\n<!-- end -->\n" for kind, name in names)


class TestTables:
    def test_page_and_plots_are_those_of_the_results(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
        load("tables").main()

    def test_numbers_that_differ_are_noticed_and_written(self, tmp_path, monkeypatch):
        tables = load("tables")
        page = tmp_path / "benchmarks.md"
        good = tables.fill(page_of(tables))
        assert "| sigmoid | 11.7 s | 21.1 s | 1.8 | 166 | 7,274 | 43.8 |" in good
        page.write_text(good.replace("7,274", "7,273"))
        monkeypatch.setattr(tables, "PAGE", page)
        monkeypatch.setattr(tables, "PICTURES", tmp_path)
        monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
        with pytest.raises(SystemExit, match="differs from benchmarks/results"):
            tables.main()
        monkeypatch.setattr(sys, "argv", ["tables.py"])
        tables.main()
        assert page.read_text() == good
        plot = tmp_path / "speed-naflex-cpu.svg"
        plot.write_text(plot.read_text().replace("1.71", "1.72") + " ")
        monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
        with pytest.raises(SystemExit, match=r"speed-naflex-cpu.svg differs from benchmarks/results"):
            tables.main()

    @pytest.mark.parametrize("page", ["", "<!-- table: forward -->\n<!-- end -->\n"])
    def test_missing_and_unknown_tables_are_errors(self, page):
        with pytest.raises(ValueError, match=r"Expected each of the tables towers-cpu, .* once, got"):
            load("tables").fill(page)

    def test_missing_and_unknown_plots_are_errors(self):
        tables = load("tables")
        with pytest.raises(ValueError, match=r"Expected each of the plots towers-cpu, .* once, got"):
            tables.fill(page_of(tables).replace("plot: towers-cpu", "plot: unknown"))

    def test_every_result_has_a_table(self):
        tables = load("tables")
        stems = {stem for stem, _ in (*tables.TABLES.values(), *tables.SEARCH_TABLES.values())}
        assert stems >= {path.stem for path in (FOLDER / "results").glob("*.json")}

    def test_what_was_not_measured_is_said(self, tmp_path, monkeypatch):
        tables = load("tables")
        monkeypatch.setattr(tables, "RESULTS", tmp_path)
        monkeypatch.setattr(tables, "PICTURES", tmp_path)
        assert "<!-- table: towers-gpu -->\n\nNot measured yet.\n" in tables.fill(page_of(tables))
        (tmp_path / "towers-gpu.json").write_text('{"cases": [], "not_measured": {"all": "no GPU"}}')
        assert "<!-- table: towers-gpu -->\n\nNot measured: no GPU.\n" in tables.fill(page_of(tables))
        assert tables.draw_plots() == {}

    def test_tables_of_search(self, tmp_path, monkeypatch):
        """With numbers that are made up."""
        tables = load("tables")
        monkeypatch.setattr(tables, "RESULTS", tmp_path)
        ms = {"twinlens, 1": 50.0, "twinlens, 100": 900.0, "faiss, 1": 99.96, "faiss, 100": 1000.0}
        first = {"import_s": 3.0, "load_s": 1.0, "encode_s": 0.2, "search_s": 0.15, "total_s": 5.0, "peak_mb": 4123}
        results = {
            "answers": [{"rows": 1_000_000, "ms": ms, "same_rows": 1.0}],
            "first": [{"rows": 1_000_000, "library": "twinlens", **first, "search_mb": 3100.0, "file_mb": 3000}],
            "lance": [{"rows": 1_000_000, "build_s": 99.5, "disk_mb": 3200, "ms": 9.25, "recall_at_10": 0.9786}],
        }
        (tmp_path / "search-cpu.json").write_text(json.dumps({"cases": results}))
        page = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in tables.SEARCH_TABLES)
        filled = tables.fill(page, tables.SEARCH_TABLES, ())
        for line in (
            "| 1,000,000 | twinlens | 50.0 | 900.0 |  |",
            "| 1,000,000 | faiss | 100.0 | 1,000.0 | 100.0 |",
            "| 1,000,000 | twinlens | 3.00 | 1.00 | 0.20 | 0.15 | 5.00 | 4,123 | 1.03 |",
            "| 1,000,000 | 100 | 3,200 | 9.3 | 0.979 |",
        ):
            assert line in filled

    def test_tables_and_plots_of_daily_work(self, tmp_path, monkeypatch):
        """With numbers that are made up."""
        tables = load("tables")
        monkeypatch.setattr(tables, "RESULTS", tmp_path)
        times = {"twinlens, optimised": 50.0, "twinlens": 90.0, "transformers, sdpa": 100.0}
        case = {"ms": times, "error": dict.fromkeys(times, 3e-13), "gflop": 10.0}
        results = {
            "towers-cpu": {
                "cases": [{"case": "clip-b32-float32-8", **case}],
                "products": [{"dtype": "float32", "library": "NumPy", "gflop_per_s": 250, "shape": [8, 768, 3072]}],
                "not_measured": {"OpenVINO": "openvino is not installed"},
            },
            "towers-gpu": {"cases": [{"case": "siglip-b16-224-bfloat16-64", **case, "images_per_s": times}]},
            "text-encoding-cpu": {
                "cases": [
                    {
                        "case": f"{tower}-{source}",
                        "ms_each": {"twinlens": 4.0, "transformers": 8.0},
                        "error": {"twinlens": 3e-13, "transformers": 3e-13},
                    }
                    for tower in ("clip", "siglip")
                    for source in ("strings", "ids")
                ]
            },
            "zero-shot-cpu": {
                "cases": [
                    {
                        "case": "clip-b16",
                        "labels": 200,
                        "ms_each": (pipelines := {"twinlens, pipeline": 200.0, "transformers, pipeline": 900.0}),
                        "images": dict.fromkeys(pipelines, 32),
                        "score_difference": dict.fromkeys(pipelines, 1e-6),
                    }
                ]
            },
            "start-cpu": {
                "cases": [
                    {"library": library, "import_s": 1.0, "load_s": 0.5, "answer_s": 0.25, "total_s": total}
                    for library, total in (("twinlens", 4.0), ("transformers", 6.0))
                ]
            },
        }
        results["embedding-job-cpu"] = {
            "environment": {"threads": 2},
            "file_bytes": 50_000,
            "dim": 768,
            "cases": [
                *(
                    {
                        "case": "speed",
                        "variant": variant,
                        "seconds": seconds,
                        "images_per_s": 2000 / seconds,
                        "speed_over_transformers": 2.5,
                        "speed_over_transformers_float32": 200 / seconds,
                    }
                    for variant, seconds in (("twinlens, float32", 80.0), ("transformers, float32", 200.0))
                ),
                {"case": "memory", "images": 4000, "peak_mb": 123, "images_per_s": 50},
            ],
        }
        for stem, result in results.items():
            (tmp_path / f"{stem}.json").write_text(json.dumps(result))
        page = tables.fill(page_of(tables))
        for line in (
            "| CLIP B/32 | float32 | 8 | 50.0 | 90.0 | 100 | 80 |",  # 10 gflop in 50 ms, of 250 a second
            "| CLIP B/32 | float32 | 3e-13 | 3e-13 | 3e-13 |",
            "| float32 | NumPy | 250 | 8, 768, 3,072 |",
            "Not measured: OpenVINO (openvino is not installed).",
            "| CLIP | twinlens | 4.00 | 4.00 | 3e-13 |",
            "| CLIP B/16 | twinlens, pipeline | 32 | 200 | 1e-06 |",
            "| twinlens | 1.0 | 0.5 | 0.3 | 4.0 |",
            "| twinlens, float32 | 25.0 | 2.50 | 2.50 |",
            "| 4,000 | 123 |",
            "| float32 | 12.5 | 0.9 | 50.0 | 3.1 | 1.5 |",  # 10^9 / (12.5 * 1000 cores) seconds, 768 numbers of 4 bytes
            "(pictures/speed-towers-cpu.svg)",
        ):
            assert line in page
        drawn = {file.stem: text for file, text in tables.draw_plots().items()}
        assert drawn.keys() == {f"speed-{stem}" for stem in results}
        for stem, speed in (("towers-cpu", "2.00"), ("text-encoding-cpu", "2.00"), ("zero-shot-cpu", "4.50")):
            assert f">{speed}</text>" in drawn[f"speed-{stem}"]


@pytest.mark.parametrize("name", ["conversion", "losses", "memory", "naflex", "text_encoding", "towers", "zero_shot"])
def test_a_filter_that_chooses_nothing_is_refused_before_anything_is_measured(name, monkeypatch, capsys):
    module = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--only", "nothing-of-this", "--noisy"])
    with pytest.raises(SystemExit, match=r"^2$"):
        module.main()
    assert "--only 'nothing-of-this' is a part of no case's name. The cases are " in capsys.readouterr().err


def test_rows_have_a_header_once(capsys):
    common = importlib.import_module("common")
    cases = [{"case": "a", "ms": 1.0}]
    common.print_rows(cases, 0)
    common.print_rows([*cases, {"case": "b", "ms": 2.0}], 1)
    assert capsys.readouterr().out == "case\tms\na\t1.0\nb\t2.0\n"
