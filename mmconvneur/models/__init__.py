from .backbones import ConvNeur, GLNet

__all__ = ['ConvNeur', 'GLNet']
