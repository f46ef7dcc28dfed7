from .layouts import LAYOUTS, Supplied, recognise
from .reading import read_checkpoint, read_state_dict
from .report import LoadReport

__all__ = [
    'LAYOUTS',
    'LoadReport',
    'Supplied',
    'read_checkpoint',
    'read_state_dict',
    'recognise',
]
