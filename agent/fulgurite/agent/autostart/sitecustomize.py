"""First code of a Python process that `fulgurite run` started, or that such a process started.

Imports nothing of Fulgurite: it waits for the module that loads models, and for the one that serves HTTP. The
`sitecustomize` that this one stands in front of is run as it would have been.
"""

import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _begin() -> None:
    """Watch for the modules that matter."""
    path = os.path.join(_HERE, "fulgurite_autostart.py")
    spec = importlib.util.spec_from_file_location("fulgurite_autostart", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        module.watch()


def _next() -> None:
    """Run the `sitecustomize` behind this one, if there is one."""
    places = [place for place in sys.path if os.path.abspath(place or os.getcwd()) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


try:
    _begin()
except Exception as error:
    sys.stderr.write(f"fulgurite: this process is not observed ({type(error).__name__}: {error})\n")
_next()
