from .convneur import ConvNeur
from .neural_memory import NeuralMemory, PublishedNeuralMemory

__all__ = ['ConvNeur', 'NeuralMemory', 'PublishedNeuralMemory']
