"""The public names, and where they are."""

from . import (
    catalogue as catalogue,
)
from . import (
    cli as cli,
)
from . import (
    compat as compat,
)
from . import (
    configuration as configuration,
)
from . import (
    conversion as conversion,
)
from . import (
    deployment as deployment,
)
from . import (
    evaluation as evaluation,
)
from . import (
    formats as formats,
)
from . import (
    index as index,
)
from . import (
    inference as inference,
)
from . import (
    integration as integration,
)
from . import (
    losses as losses,
)
from . import (
    modeling as modeling,
)
from . import (
    parity as parity,
)
from . import (
    processing as processing,
)
from . import (
    runtime as runtime,
)
from . import (
    toy_world as toy_world,
)
from . import (
    training as training,
)
from . import (
    web as web,
)
from ._version import __version__ as __version__
from .configuration import CLIPConfig as CLIPConfig
from .configuration import CLIPResNetConfig as CLIPResNetConfig
from .configuration import CLIPResNetVisionConfig as CLIPResNetVisionConfig
from .configuration import CLIPTextConfig as CLIPTextConfig
from .configuration import CLIPVisionConfig as CLIPVisionConfig
from .configuration import DualEncoderConfig as DualEncoderConfig
from .configuration import Siglip2Config as Siglip2Config
from .configuration import Siglip2TextConfig as Siglip2TextConfig
from .configuration import Siglip2VisionConfig as Siglip2VisionConfig
from .configuration import SiglipConfig as SiglipConfig
from .configuration import SiglipTextConfig as SiglipTextConfig
from .configuration import SiglipVisionConfig as SiglipVisionConfig
from .inference import Embedder as Embedder
from .inference import ZeroShotClassifier as ZeroShotClassifier
from .inference import locate as locate
from .integration import register as register
from .integration import to_transformers as to_transformers
from .integration import unregister as unregister
from .modeling import CLIPForImageClassification as CLIPForImageClassification
from .modeling import CLIPModel as CLIPModel
from .modeling import CLIPResNetForImageClassification as CLIPResNetForImageClassification
from .modeling import CLIPResNetModel as CLIPResNetModel
from .modeling import CLIPResNetVisionModel as CLIPResNetVisionModel
from .modeling import CLIPTextModel as CLIPTextModel
from .modeling import CLIPTextModelWithProjection as CLIPTextModelWithProjection
from .modeling import CLIPVisionModel as CLIPVisionModel
from .modeling import CLIPVisionModelWithProjection as CLIPVisionModelWithProjection
from .modeling import DualEncoderModel as DualEncoderModel
from .modeling import Siglip2ForImageClassification as Siglip2ForImageClassification
from .modeling import Siglip2Model as Siglip2Model
from .modeling import Siglip2TextModel as Siglip2TextModel
from .modeling import Siglip2VisionModel as Siglip2VisionModel
from .modeling import SiglipForImageClassification as SiglipForImageClassification
from .modeling import SiglipModel as SiglipModel
from .modeling import SiglipTextModel as SiglipTextModel
from .modeling import SiglipVisionModel as SiglipVisionModel
from .modeling.clip import CLIPPreTrainedModel as CLIPPreTrainedModel
from .modeling.siglip import SiglipPreTrainedModel as SiglipPreTrainedModel
from .modeling.siglip2 import Siglip2PreTrainedModel as Siglip2PreTrainedModel
from .processing import CLIPImageProcessor as CLIPImageProcessor
from .processing import CLIPImageProcessorPil as CLIPImageProcessorPil
from .processing import CLIPProcessor as CLIPProcessor
from .processing import CLIPTokenizer as CLIPTokenizer
from .processing import DualEncoderProcessor as DualEncoderProcessor
from .processing import Siglip2ImageProcessor as Siglip2ImageProcessor
from .processing import Siglip2ImageProcessorPil as Siglip2ImageProcessorPil
from .processing import Siglip2Processor as Siglip2Processor
from .processing import Siglip2Tokenizer as Siglip2Tokenizer
from .processing import SiglipImageProcessor as SiglipImageProcessor
from .processing import SiglipImageProcessorPil as SiglipImageProcessorPil
from .processing import SiglipProcessor as SiglipProcessor
from .processing import SiglipTokenizer as SiglipTokenizer
