"""The public names, and where they are."""

from .augmentation import RandomResizedCrop as RandomResizedCrop
from .collator import ContrastiveCollator as ContrastiveCollator
from .embedding import embed_images as embed_images
from .embedding import embed_texts as embed_texts
from .memory import estimate_memory as estimate_memory
from .metrics import retrieval_metrics as retrieval_metrics
from .metrics import zero_shot_accuracy as zero_shot_accuracy
from .optimization import add_lora as add_lora
from .optimization import freeze as freeze
from .optimization import parameter_groups as parameter_groups
from .plan import TrainingPlan as TrainingPlan
from .probes import few_shot_logits as few_shot_logits
from .probes import linear_probe as linear_probe
from .run import dry_run as dry_run
from .run import train as train
from .sources import load_pairs as load_pairs
from .trainer import ContrastiveTrainer as ContrastiveTrainer
from .trainer import ContrastiveTrainingArguments as ContrastiveTrainingArguments
from .trainer import ZeroShotTask as ZeroShotTask
