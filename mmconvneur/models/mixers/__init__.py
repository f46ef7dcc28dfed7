from .attention import CBAM, NonLocal, SelfAttention
from .glmix import GLMix
from .neural_memory import NeuralMemory, PublishedNeuralMemory
from .spatial_bias import SpatialBias

__all__ = [
    'CBAM',
    'GLMix',
    'NeuralMemory',
    'NonLocal',
    'PublishedNeuralMemory',
    'SelfAttention',
    'SpatialBias',
]
