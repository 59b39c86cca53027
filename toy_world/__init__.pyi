"""The public names, and where they are."""

from .dataset import ShapesDataset as ShapesDataset
from .dataset import SingleShapeDataset as SingleShapeDataset
from .large_picture import LargePicture as LargePicture
from .large_picture import draw_large_picture as draw_large_picture
from .new_words import write_new_words as write_new_words
from .picture import render as render
from .world import HELD_OUT as HELD_OUT
from .world import KINDS as KINDS
from .world import Scene as Scene
from .world import Thing as Thing
from .world import describe_kind as describe_kind
from .world import draw_caption as draw_caption
from .world import draw_scene as draw_scene
