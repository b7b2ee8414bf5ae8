from .brain import Outputs, PredictionReport, predict_brain
from .evaluate import evaluate_brain
from .features import Embedding, embed, embed_brain
from .maps import NOT_PREDICTED, ClassMap, open_class_map
from .predictor import Band, Failure, Predictor
from .reading import SectionSource, map_shape

__all__ = [
    "NOT_PREDICTED",
    "Band",
    "ClassMap",
    "Embedding",
    "Failure",
    "Outputs",
    "PredictionReport",
    "Predictor",
    "SectionSource",
    "embed",
    "embed_brain",
    "evaluate_brain",
    "map_shape",
    "open_class_map",
    "predict_brain",
]
