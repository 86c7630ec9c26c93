"""The shader texts, read from the `.glsl` files beside this one.

A file has four sections, each begun by a line ``//# vertex declarations``, ``//# vertex main``, ``//#
fragment declarations``, ``//# fragment main``; `common.glsl` has none and goes before the declarations of
every stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

_COMMENT = re.compile(r"//[^\n]*")
_UNIFORM = re.compile(r"\bu[A-Z]\w*")
_SAMPLER = re.compile(r"uniform sampler2D (\w+)")
SECTIONS = ("vertex declarations", "vertex main", "fragment declarations", "fragment main")


@dataclass(frozen=True, slots=True)
class ShaderText:
    """The four sections of one shader."""

    vertex_declarations: str
    vertex_main: str
    fragment_declarations: str
    fragment_main: str

    def uniforms(self, stage: Literal["vertex", "fragment"]) -> frozenset[str]:
        """The numbers that a front-end sets: names like `uTime` that the stage uses."""
        declarations = self.vertex_declarations if stage == "vertex" else self.fragment_declarations
        text = _COMMENT.sub(
            "", declarations + (self.vertex_main if stage == "vertex" else self.fragment_main)
        )
        return frozenset(_UNIFORM.findall(text)) - frozenset(_SAMPLER.findall(text))


def source(name: str) -> str:
    """The text of ``name.glsl``."""
    return (files(__package__) / f"{name}.glsl").read_text(encoding="utf-8")


def shader(name: str) -> ShaderText:
    """The shader ``name``, with the common functions in both stages.

    Raises
    ------
    ValueError
        Where the file lacks a section.
    """
    found: dict[str, str] = {}
    for part in source(name).split("//# ")[1:]:
        title, _, body = part.partition("\n")
        found[title.strip()] = body
    missing = [title for title in SECTIONS if title not in found]
    if missing:
        raise ValueError(f"shader {name}.glsl has no section {missing[0]!r}")
    common = source("common")
    return ShaderText(
        vertex_declarations=common + found["vertex declarations"],
        vertex_main=found["vertex main"],
        fragment_declarations=common + found["fragment declarations"],
        fragment_main=found["fragment main"],
    )
