"""Frame time and Python time of the scene, beside the same nodes and arcs redrawn with PyVista."""
