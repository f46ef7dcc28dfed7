from .attention import CBAM, NonLocal, SelfAttention
from .chunked_memory import ChunkedNeuralMemory, PublishedNeuralMemory
from .glmix import GLMix
from .neural_memory import NeuralMemory
from .spatial_bias import SpatialBias

__all__ = [
    'CBAM',
    'ChunkedNeuralMemory',
    'GLMix',
    'NeuralMemory',
    'NonLocal',
    'PublishedNeuralMemory',
    'SelfAttention',
    'SpatialBias',
]
