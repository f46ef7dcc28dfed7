from .attention import CBAM, NonLocal, SelfAttention
from .convneur import ConvNeur
from .glmix import GLMix
from .glnet import GLNet
from .neural_memory import NeuralMemory, PublishedNeuralMemory
from .spatial_bias import SpatialBias

__all__ = [
    'CBAM',
    'ConvNeur',
    'GLMix',
    'GLNet',
    'NeuralMemory',
    'NonLocal',
    'PublishedNeuralMemory',
    'SelfAttention',
    'SpatialBias',
]
