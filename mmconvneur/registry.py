"""Registries, through which MMEngine finds this package.

MMEngine imports ``<scope>.registry`` when it meets a type such as ``mmconvneur.ConvNeur`` and then
the ``locations`` of the registry, so a config needs no ``custom_imports``. Backbones are registered
in MMEngine's root: the child below resolves the scoped name through its parent, and once the
package is imported the short name works in mmdet and mmseg as well.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from mmengine.registry import Registry

SCOPE = 'mmconvneur'

MODELS = Registry('model', parent=ROOT_MODELS, scope=SCOPE, locations=['mmconvneur.models'])
METRICS = Registry(
    'metric', parent=ROOT_METRICS, scope=SCOPE, locations=['mmconvneur.evaluation.metrics']
)
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope=SCOPE, locations=['mmconvneur.engine.hooks'])
LOOPS = Registry('loop', parent=ROOT_LOOPS, scope=SCOPE, locations=['mmconvneur.engine.loops'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_CONSTRUCTORS,
    scope=SCOPE,
    locations=['mmconvneur.engine.optim'],
)

# Global branches share names with layers of other packages (NonLocal, CBAM): a tree of their own.
MIXERS = Registry('global mixer', scope=SCOPE, locations=['mmconvneur.models.mixers'])
