"""The public names, and where they are."""

from .auto_classes import Registration as Registration
from .auto_classes import register as register
from .auto_classes import unregister as unregister
from .native import to_transformers as to_transformers
from .substitution import substituted as substituted
