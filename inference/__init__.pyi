"""The public names, and where they are."""

from .attention import draw_attention as draw_attention
from .attention import pooling_attention as pooling_attention
from .boxes import draw_boxes as draw_boxes
from .embedding import embed_images as embed_images
from .embedding import embed_texts as embed_texts
from .guided_search import Located as Located
from .guided_search import locate as locate
from .labels import check_labels as check_labels
from .labels import read_labels as read_labels
from .zero_shot import classify_images as classify_images
from .zero_shot import load_exact_model as load_exact_model
from .zero_shot import load_processor as load_processor
from .zero_shot import probabilities as probabilities
