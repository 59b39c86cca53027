"""The public names, and where they are."""

from .tensor_features import CLIPModel as CLIPModel
from .tensor_features import CLIPResNetModel as CLIPResNetModel
from .tensor_features import Siglip2Model as Siglip2Model
from .tensor_features import SiglipModel as SiglipModel
from .tensor_features import TensorFeatures as TensorFeatures
from .tensor_features import in_place_of_transformers as in_place_of_transformers
