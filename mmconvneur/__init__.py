"""ConvNeur: a dense-prediction backbone for OpenMMLab."""

from .errors import UsageError
from .models import ConvNeur

__version__ = '0.1.0'
__all__ = ['ConvNeur', 'UsageError']
