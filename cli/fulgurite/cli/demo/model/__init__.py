"""The bundled model: a small Llama that tells stories, closes brackets and echoes what it has never seen.

It is trained from this folder alone (`train.py`, text from `corpus.py`), so that the demo shows a model at
real work without a download. For anything but that, name another model.
"""

from __future__ import annotations

from fulgurite.cli.demo.model.loading import ModelUnavailable, bundled_path, load

__all__ = ["ModelUnavailable", "bundled_path", "load"]
