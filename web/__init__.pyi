"""The public names, and where they are."""

from .answers import Answers as Answers
from .interface import build_app as build_app
