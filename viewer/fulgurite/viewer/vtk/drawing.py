"""One drawn thing: points with attributes, data textures, uniforms, a shader, a way to blend. The VTK recipe.

What must hold for VTK 9.7: every uniform is set before the first picture, or the shader does not compile;
points keep real bounds, or the actor is culled; order-independent translucency is off on the renderer, or
blending is VTK's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkDataObject, vtkImageData, vtkPolyData
from vtkmodules.vtkRenderingCore import vtkActor, vtkTexture
from vtkmodules.vtkRenderingOpenGL2 import vtkOpenGLPolyDataMapper

from fulgurite.viewer.shaders import ShaderText, shader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Blend = Literal["opaque", "over", "premultiplied", "screen", "brightest"]
Primitive = Literal["points", "lines", "triangles"]

Uniform = float | tuple[float, float] | tuple[float, float, float]
VECTORS: dict[str, Uniform] = {"uViewport": (1280.0, 720.0), "uColor": (1.0, 1.0, 1.0)}
"""Uniforms that are no plain numbers, with what they are before they are set."""

COMPILED_IN = frozenset({"uPush", "uStill", "uDisc"})
"""Switches that hardly ever turn: constants of the compiled shader, and a turn compiles it anew. Drawing in
software executes both sides of every branch on a uniform, and drops the dead side of one on a constant."""

_GL_ZERO, _GL_ONE = 0, 1
_GL_FUNC_ADD, _GL_MAX = 0x8006, 0x8008
_GL_ONE_MINUS_SRC_COLOR, _GL_SRC_ALPHA, _GL_ONE_MINUS_SRC_ALPHA = 0x0301, 0x0302, 0x0303

# Screen blending (1 - (1-a)(1-b)) instead of adding: crossing glows grow brighter, keep their colour. Bolts
# take the brighter of both: their segments overlap without a seam, and several requests do not turn white.
_BLENDING: dict[str, tuple[int, int, int, int]] = {
    "over": (_GL_SRC_ALPHA, _GL_ONE_MINUS_SRC_ALPHA, _GL_ONE, _GL_ONE_MINUS_SRC_ALPHA),
    "premultiplied": (_GL_ONE, _GL_ONE_MINUS_SRC_ALPHA, _GL_ONE, _GL_ONE_MINUS_SRC_ALPHA),
    "screen": (_GL_ONE, _GL_ONE_MINUS_SRC_COLOR, _GL_ONE, _GL_ONE),
    "brightest": (_GL_ONE, _GL_ONE, _GL_ONE, _GL_ONE),
}


class DataTexture:
    """A picture of numbers on the GPU: float32 texels, or bytes, shape (height, width, 4), in C order.

    `texels` is not copied: who changes it in place says so (`changed`), and nothing else is to be done.
    """

    def __init__(self, texels: NDArray[Any], *, smooth: bool = False) -> None:
        height, width, _ = texels.shape
        self._texels = np.ascontiguousarray(texels)
        self._array = numpy_to_vtk(self._texels.reshape(-1, 4), deep=False)  # type: ignore[no-untyped-call]
        self._array.SetName("texels")
        self._image = vtkImageData()
        self._image.SetDimensions(width, height, 1)
        self._image.GetPointData().SetScalars(self._array)
        self.vtk = vtkTexture()
        self.vtk.SetInputDataObject(self._image)
        self.vtk.SetColorModeToDirectScalars()
        self.vtk.SetInterpolate(smooth)
        self.vtk.SetMipmap(False)
        self.vtk.SetRepeat(False)

    def write(self, texels: NDArray[Any]) -> None:
        """New texels of the same shape."""
        self._texels[:] = texels
        self.changed()

    def changed(self) -> None:
        """The texels are others now: send them with the next picture."""
        self._image.Modified()


class Drawing:
    """An actor with its own shader.

    Parameters
    ----------
    name : the shader's file.
    points : ndarray of float32, shape (n, 3)
        Positions; where the shader places vertices itself, any points that span what it draws.
    attributes : arrays of float32, shape (n, k), by their names in the shader.
    primitive : what the points make up; `index` (m, 2) or (m, 3) joins them to lines or triangles.
    textures, uniforms : by their names in the shader, in whichever stage they are used.
    """

    def __init__(
        self,
        name: str,
        points: NDArray[Any],
        *,
        primitive: Primitive,
        blend: Blend,
        index: NDArray[Any] | None = None,
        attributes: Mapping[str, NDArray[Any]] | None = None,
        textures: Mapping[str, DataTexture] | None = None,
        uniforms: Mapping[str, Uniform] | None = None,
    ) -> None:
        self.name = name
        self._data = _poly_data(points, primitive, index)
        self._mapper = vtkOpenGLPolyDataMapper()
        self._mapper.SetInputData(self._data)
        self._mapper.SetVBOShiftScaleMethod(0)
        self._mapper.ScalarVisibilityOff()
        for attribute, values in (attributes or {}).items():
            self._attribute(attribute, values)
        self.actor = vtkActor()
        self.actor.SetMapper(self._mapper)
        self.actor.PickableOff()
        self.actor.GetProperty().LightingOff()
        if primitive == "points":
            self.actor.GetProperty().SetRepresentationToPoints()
            self._mapper.UseProgramPointSizeOn()
        self._textures = dict(textures or {})  # VTK holds them, and Python their memory
        for texture, data in self._textures.items():
            self.actor.GetProperty().SetTexture(texture, data.vtk)
        properties = self.actor.GetShaderProperty()
        self._text = shader(name)
        vertex, fragment = self._text.uniforms("vertex"), self._text.uniforms("fragment")
        self._stages = (
            (properties.GetVertexCustomUniforms(), vertex - COMPILED_IN),
            (properties.GetFragmentCustomUniforms(), fragment - COMPILED_IN),
        )
        self._compiled_in = COMPILED_IN & (vertex | fragment)
        self._clocks = [stage.SetUniformf for stage, used in self._stages if "uTime" in used]
        self._uniforms: dict[str, Uniform] = {}
        everything: dict[str, Uniform] = {used: VECTORS.get(used, 0.0) for used in vertex | fragment}
        self.set(**{**everything, **(uniforms or {})})
        if not self._compiled_in:
            self._shade()
        if blend == "opaque":
            self.actor.ForceOpaqueOn()
        else:
            self.actor.ForceTranslucentOn()
            self._blend(_BLENDING[blend], _GL_MAX if blend == "brightest" else _GL_FUNC_ADD)

    def set(self, **uniforms: Uniform) -> None:
        """Uniforms of the shader; those that it does not use, or that are so already, are passed over."""
        changed = {name for name, value in uniforms.items() if self._uniforms.get(name) != value}
        if not changed:
            return
        turned = self._compiled_in & changed
        self._uniforms.update((name, uniforms[name]) for name in turned)
        if turned:
            self._shade()
        for stage, used in self._stages:
            for name in used & changed:
                value = self._uniforms[name] = uniforms[name]
                if isinstance(value, tuple):
                    (stage.SetUniform2f if len(value) == 2 else stage.SetUniform3f)(name, value)
                else:
                    stage.SetUniformf(name, value)

    def set_time(self, time_s: float) -> None:
        """The one uniform that is another in every picture."""
        for clock in self._clocks:
            clock("uTime", time_s)

    def _attribute(self, name: str, values: NDArray[Any]) -> None:
        array = _vtk_floats(values)
        array.SetName(name)
        self._data.GetPointData().AddArray(array)
        self._mapper.MapDataArrayToVertexAttribute(name, name, vtkDataObject.FIELD_ASSOCIATION_POINTS, -1)

    def _shade(self) -> None:
        """Hand VTK the shader; it compiles a text that it has not seen yet with the next picture."""
        text, properties = self._text, self.actor.GetShaderProperty()
        constants = "".join(
            f"const float {name} = {self._uniforms[name]};\n" for name in sorted(self._compiled_in)
        )
        for replace, place, body in (
            (
                properties.AddVertexShaderReplacement,
                "//VTK::PositionVC::Dec",
                constants + text.vertex_declarations,
            ),
            (
                properties.AddFragmentShaderReplacement,
                "//VTK::PositionVC::Dec",
                constants + _without_samplers(text),
            ),
            (properties.AddVertexShaderReplacement, "//VTK::PositionVC::Impl", text.vertex_main),
        ):
            replace(place, True, f"{place}\n{body}", False)
        properties.AddFragmentShaderReplacement("//VTK::Light::Impl", True, text.fragment_main, False)

    def _blend(self, factors: tuple[int, int, int, int], equation: int) -> None:
        """VTK blends each actor's pass its own way; ours replaces it from the shader's set-up to the end."""

        def begin(_mapper: Any, _event: str) -> None:
            if self._state is not None:
                self._state.vtkglBlendFuncSeparate(*factors)
                self._state.vtkglBlendEquation(equation)

        def end(_mapper: Any, _event: str) -> None:
            if self._state is not None:
                self._state.vtkglBlendFuncSeparate(*_BLENDING["over"])
                self._state.vtkglBlendEquation(_GL_FUNC_ADD)

        self._state: Any = None
        self._mapper.AddObserver("UpdateShaderEvent", begin)  # type: ignore[arg-type]
        self._mapper.AddObserver("EndEvent", end)  # type: ignore[arg-type]

    def bind(self, state: Any) -> None:
        """The GL state of the window that this is drawn in."""
        self._state = state


def _without_samplers(text: ShaderText) -> str:
    """The fragment declarations without the samplers, which VTK declares itself in this stage only."""
    lines = text.fragment_declarations.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("uniform sampler2D"))


def _vtk_floats(values: NDArray[Any]) -> Any:
    """A copy as VTK's array of float32."""
    return numpy_to_vtk(np.ascontiguousarray(values, np.float32), deep=True)  # type: ignore[no-untyped-call]


def _vtk_ids(values: NDArray[Any]) -> Any:
    """A copy as VTK's array of indices."""
    ids = np.ascontiguousarray(values, np.int64)
    return numpy_to_vtkIdTypeArray(ids, deep=True)  # type: ignore[no-untyped-call]


def _poly_data(points: NDArray[Any], primitive: Primitive, index: NDArray[Any] | None) -> vtkPolyData:
    data, places = vtkPolyData(), vtkPoints()
    places.SetData(_vtk_floats(points))
    data.SetPoints(places)
    if index is None:
        index = np.arange(len(points))[:, None]
    cells = vtkCellArray()
    cells.SetData(_vtk_ids(np.arange(len(index) + 1) * index.shape[1]), _vtk_ids(index.ravel()))
    {"points": data.SetVerts, "lines": data.SetLines, "triangles": data.SetPolys}[primitive](cells)
    return data
