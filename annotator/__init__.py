"""Label hand photos: 3D joints, mesh, calibrated uncertainty and texture.

    import annotator
    labels = annotator.load("default").predict(["hand.jpg"])

`load` gives a predictor for arrays and paths, `annotate` runs the whole job from a source of photos to a label folder.
Both are imported when first used: the package itself is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from annotator.errors import UserError

if TYPE_CHECKING:
    from annotator.commands.annotate import annotate
    from annotator.commands.fit import fit
    from annotator.predictor import load

__all__ = ["UserError", "annotate", "fit", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from annotator.predictor import load

        return load
    if name == "annotate":
        from annotator.commands.annotate import annotate

        return annotate
    if name == "fit":
        from annotator.commands.fit import fit

        return fit
    raise AttributeError(f"module 'annotator' has no attribute '{name}'")
