"""A look at config, data and model before the first iteration; see :func:`.look.look`.

Every module holds the checks of one subject. A check is a generator that takes a :class:`.data.Run`
and yields :class:`.findings.Finding`: what is certainly wrong, or a doubt. What mmdet and mmseg
accept and mean passes, and of what a check cannot read it says nothing.
"""
