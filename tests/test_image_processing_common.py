"""transformers' common tests of image processors, run on ours."""

import unittest
from typing import Any

import pytest
import transformers
from helpers.transformers_sources import transformers_tests
from packaging.version import Version

from twinlens.processing import CLIPImageProcessor, Siglip2ImageProcessor, SiglipImageProcessor

transformers_tests()
from tests.test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs  # noqa: E402


class Description:
    """What the common tests ask about a processor: the settings to build it with, inputs, the size of outputs."""

    def __init__(self, processor_class: type, settings: dict[str, Any]) -> None:
        self.image_processing_classes = {"pil": processor_class}
        self.settings = settings
        self.batch_size, self.num_channels = 7, 3

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def prepare_image_inputs(
        self, equal_resolution: bool = False, numpify: bool = False, torchify: bool = False
    ) -> Any:
        return prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=400,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )

    def prepare_processor_inputs(self, **kwargs: Any) -> dict[str, Any]:
        return {"images": self.prepare_image_inputs(**kwargs)}

    def expected_output_image_shape(self, images: Any) -> tuple[int, ...]:
        if "max_num_patches" in self.settings:
            return self.settings["max_num_patches"], self.settings["patch_size"] ** 2 * self.num_channels
        size = self.settings.get("crop_size", self.settings["size"])
        return self.num_channels, size["height"], size["width"]


class CommonTests(ImageProcessingTestMixin):
    processor_class: type
    settings: dict[str, Any]
    test_cast_dtype = True
    test_new_models_require_torchvision_backend = None  # a rule for files in transformers' own repository
    if Version(transformers.__version__) < Version("5.21"):
        test_call_numpy_4_channels = None  # asks for RGBA that stays unconverted
        test_image_processor_save_load_with_autoimageprocessor = None  # needs torchvision
        test_pil_can_load_without_torchvision = None  # imports a folder that is not in the source distribution

    def setUp(self) -> None:
        self.image_processor_tester = Description(self.processor_class, self.settings)

    @property
    def image_processing_classes(self) -> dict[str, type]:
        return self.image_processor_tester.image_processing_classes

    @property
    def image_processor_dict(self) -> dict[str, Any]:
        return self.image_processor_tester.prepare_image_processor_dict()


class CLIPImageProcessorTest(CommonTests, unittest.TestCase):
    processor_class = CLIPImageProcessor
    settings = {
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 18, "width": 18},
        "do_convert_rgb": True,
    }
    test_valid_kwargs_set = None  # by upstream's rule each family has settings of its own; here two have the same


class SiglipImageProcessorTest(CommonTests, unittest.TestCase):
    processor_class = SiglipImageProcessor
    settings = {"size": {"height": 18, "width": 18}, "resample": 3}
    test_valid_kwargs_set = None


@pytest.mark.filterwarnings("ignore:an image shrinks")
class Siglip2ImageProcessorTest(CommonTests, unittest.TestCase):
    processor_class = Siglip2ImageProcessor
    settings = {"patch_size": 4, "max_num_patches": 64, "resample": 2}
