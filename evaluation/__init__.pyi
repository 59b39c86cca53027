"""The public names, and where they are."""

from .few_shot import Spread as Spread
from .few_shot import few_shot_accuracy as few_shot_accuracy
from .images import EmbeddedImages as EmbeddedImages
from .images import SkippedImage as SkippedImage
from .images import embed_images as embed_images
from .metrics import accuracy_metrics as accuracy_metrics
from .metrics import average_precisions as average_precisions
from .metrics import class_ranks as class_ranks
from .metrics import retrieval_metrics as retrieval_metrics
from .metrics import similarities as similarities
from .metrics import zero_shot_accuracy as zero_shot_accuracy
from .probes import choose_penalty as choose_penalty
from .probes import few_shot_logits as few_shot_logits
from .probes import linear_probe as linear_probe
from .splits import draw_examples as draw_examples
from .splits import split_by_class as split_by_class
