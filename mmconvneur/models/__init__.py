from .attention import CBAM, NonLocal, SelfAttention
from .convneur import ConvNeur
from .neural_memory import NeuralMemory, PublishedNeuralMemory
from .spatial_bias import SpatialBias

__all__ = [
    'CBAM',
    'ConvNeur',
    'NeuralMemory',
    'NonLocal',
    'PublishedNeuralMemory',
    'SelfAttention',
    'SpatialBias',
]
