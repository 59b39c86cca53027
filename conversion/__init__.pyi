"""The public names, and where they are."""

from .convert import ParityError as ParityError
from .convert import convert as convert
from .export import export as export
from .push import PushPlan as PushPlan
from .push import push as push
