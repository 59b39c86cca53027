"""The public names, and where they are."""

from .metrics import retrieval_metrics as retrieval_metrics
from .metrics import zero_shot_accuracy as zero_shot_accuracy
from .probes import few_shot_logits as few_shot_logits
from .probes import linear_probe as linear_probe
