"""A world of coloured shapes to learn from: pictures with captions, what was learnt, and two recipes."""

from .dataset import OneThing, ShapesDataset
from .picture import render
from .world import HELD_OUT, KINDS, Scene, Thing, draw_caption, draw_scene, name

__all__ = [
    "HELD_OUT",
    "KINDS",
    "OneThing",
    "Scene",
    "ShapesDataset",
    "Thing",
    "draw_caption",
    "draw_scene",
    "name",
    "render",
]
