from .convneur import ConvNeur
from .glmix import GLMix
from .glnet import GLNet
from .neural_memory import NeuralMemory, PublishedNeuralMemory

__all__ = ['ConvNeur', 'GLMix', 'GLNet', 'NeuralMemory', 'PublishedNeuralMemory']
