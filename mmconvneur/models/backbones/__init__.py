from .convneur import ConvNeur
from .glnet import GLNet

__all__ = ['ConvNeur', 'GLNet']
