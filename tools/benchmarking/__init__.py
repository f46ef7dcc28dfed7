"""Backbones timed side by side; ``tools/benchmark.py`` is the command.

``backbones.py`` who runs, ``measure.py`` how a step is counted and timed, ``cases.py`` one race,
``report.py`` what is written.
"""
