"""Official checkpoint files: safe readers, and tables that turn them into transformers' names and back."""

from .big_vision import BigVisionLayout
from .checkpoint import LAYOUTS, Checkpoint, is_checkpoint_file, layout_from_dict, read_checkpoint, to_official
from .errors import FormatError, absolute_path, readable_errors
from .geometry import differences
from .inspection import inspect_source
from .layout import Layout
from .markdown import code_span, escaped
from .open_clip import OpenClipLayout
from .openai import OpenAILayout
from .options import Activation, LoadOptions, check_options, pop_options
from .reader import read_weights, unwrapped_weights
from .small_files import check_settings, parse_json, read_json, read_small
from .source import read_source
from .timm import TimmLayout
from .torch_file import write_archive
from .transformers_folder import TransformersLayout, read_config
from .writer import write_safetensors, write_tensors

__all__ = [
    "LAYOUTS",
    "Activation",
    "BigVisionLayout",
    "Checkpoint",
    "FormatError",
    "Layout",
    "LoadOptions",
    "OpenAILayout",
    "OpenClipLayout",
    "TimmLayout",
    "TransformersLayout",
    "absolute_path",
    "check_options",
    "check_settings",
    "code_span",
    "differences",
    "escaped",
    "inspect_source",
    "is_checkpoint_file",
    "layout_from_dict",
    "parse_json",
    "pop_options",
    "read_checkpoint",
    "read_config",
    "read_json",
    "read_small",
    "read_source",
    "read_weights",
    "readable_errors",
    "to_official",
    "unwrapped_weights",
    "write_archive",
    "write_safetensors",
    "write_tensors",
]
