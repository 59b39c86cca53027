"""The public names, and where they are."""

from .job import EmbedResult as EmbedResult
from .job import Progress as Progress
from .job import embed as embed
from .layout import Index as Index
from .layout import ShardContent as ShardContent
from .layout import write_index as write_index
from .layout import write_shard as write_shard
from .settings import EmbedPlan as EmbedPlan
from .weights import weights_fingerprint as weights_fingerprint
