"""The public names, and where they are."""

from .boxes import draw_boxes as draw_boxes
from .embedder import Embedder as Embedder
from .explanation import TextScore as TextScore
from .explanation import explain_image as explain_image
from .guided_search import Located as Located
from .guided_search import locate as locate
from .heat_map import draw_maps as draw_maps
from .heat_map import patch_box as patch_box
from .labels import check_labels as check_labels
from .labels import read_labels as read_labels
from .maps import attention_rollout as attention_rollout
from .maps import encode_image_and_patches as encode_image_and_patches
from .maps import encode_patches as encode_patches
from .maps import pooling_attention as pooling_attention
from .maps import project_tokens as project_tokens
from .maps import similarity_map as similarity_map
from .sources import load_exact_model as load_exact_model
from .sources import load_processor as load_processor
from .templates import TEMPLATES as TEMPLATES
from .templates import class_embeddings as class_embeddings
from .templates import read_templates as read_templates
from .zero_shot import ZeroShotClassifier as ZeroShotClassifier
from .zero_shot import classify_images as classify_images
from .zero_shot import probabilities as probabilities
