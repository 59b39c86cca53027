"""The public names, and where they are."""

from .check import GraphCheck as GraphCheck
from .check import GraphError as GraphError
from .export import export_onnx as export_onnx
from .files import ExportError as ExportError
