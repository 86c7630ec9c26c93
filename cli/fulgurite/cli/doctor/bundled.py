"""Whether the demo's model came with the installation."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fulgurite.cli.doctor.finding import Finding


def bundled_model() -> Finding:
    """A finding on the weights of the bundled model, without loading them."""
    spec = find_spec("fulgurite.cli.demo.model")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    weights = [path for folder in folders for path in Path(folder).rglob("*.safetensors")]
    if not weights:
        return Finding(
            area="installed",
            name="bundled model",
            state="broken",
            detail="its weights are not in the installation",
            mend="pip install --force-reinstall fulgurite",
        )
    size = sum(path.stat().st_size for path in weights)
    return Finding(area="installed", name="bundled model", state="ok", detail=f"{size / 1e6:.1f} MB")
