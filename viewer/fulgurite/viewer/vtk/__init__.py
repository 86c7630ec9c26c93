"""The drawing with VTK. The only package of the viewer that imports vtk; importing it opens no window."""
