"""ConvNeur: a dense-prediction backbone for OpenMMLab."""

from .errors import UsageError

__version__ = '0.1.0'
__all__ = ['ConvNeur', 'SpatialBiasResNet', 'UsageError']


def __getattr__(name: str) -> object:
    # On demand: mmconvneur.utils.environment has to import where torch or MMEngine do not.
    if name == 'ConvNeur':
        from .models import ConvNeur

        return ConvNeur
    if name == 'SpatialBiasResNet':
        # Needs mmdet or mmseg, which ConvNeur does not; MMEngine's registry looks here as well.
        from .models.backbones.spatial_bias_resnet import SpatialBiasResNet

        return SpatialBiasResNet
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
