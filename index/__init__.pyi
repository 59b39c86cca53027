"""The public names, and where they are."""

from .exact_search import Found as Found
from .exact_search import search as search
from .job import EmbedResult as EmbedResult
from .job import Progress as Progress
from .job import embed as embed
from .lance import search_table as search_table
from .layout import Index as Index
from .layout import ShardContent as ShardContent
from .layout import write_index as write_index
from .layout import write_shard as write_shard
from .originals import Thumbnail as Thumbnail
from .originals import make_thumbnail as make_thumbnail
from .originals import make_thumbnails as make_thumbnails
from .originals import read_originals as read_originals
from .page import PageItem as PageItem
from .page import make_page as make_page
from .searcher import Searcher as Searcher
from .searcher import SearchResult as SearchResult
from .settings import EmbedPlan as EmbedPlan
from .weights import weights_fingerprint as weights_fingerprint
