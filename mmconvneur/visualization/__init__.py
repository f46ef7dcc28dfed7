"""Pictures of how a backbone treats an image: see docs/visualization.md and ``taps.py``."""

from .maps import gate, read_weights, slot_assignment, write_weights
from .receptive_field import ReceptiveField, effective_receptive_field, square_holding
from .taps import FusionTap, MemoryTap, Taps, capture

__all__ = [
    'FusionTap',
    'MemoryTap',
    'ReceptiveField',
    'Taps',
    'capture',
    'effective_receptive_field',
    'gate',
    'read_weights',
    'slot_assignment',
    'square_holding',
    'write_weights',
]
