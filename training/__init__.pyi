"""The public names, and where they are."""

from .arguments import ContrastiveTrainingArguments as ContrastiveTrainingArguments
from .augmentation import RandomResizedCrop as RandomResizedCrop
from .averaging import average as average
from .collator import ContrastiveCollator as ContrastiveCollator
from .labelled_images import image_classes as image_classes
from .labelled_tables import load_labels as load_labels
from .memory import MemoryEstimate as MemoryEstimate
from .memory import estimate_memory as estimate_memory
from .optimization import add_lora as add_lora
from .optimization import freeze as freeze
from .optimization import parameter_groups as parameter_groups
from .plan import TrainingPlan as TrainingPlan
from .run import TrainingResult as TrainingResult
from .run import dry_run as dry_run
from .run import train as train
from .sources import load_pairs as load_pairs
from .trainer import ContrastiveTrainer as ContrastiveTrainer
from .trainer import ZeroShotTask as ZeroShotTask
