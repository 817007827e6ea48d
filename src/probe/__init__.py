"""probe: can this container, this node, this cluster do its work now, and if not, what is wrong and who can mend it?"""

__version__ = "0.1.0"
