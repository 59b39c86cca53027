"""Our models as transformers 4 had them, for clients written before transformers 5: features are tensors.

`get_image_features` and `get_text_features` return (images, dim) and (texts, dim), projected and not normalised, in
place of the outputs of a tower. All else is the model of the same name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
