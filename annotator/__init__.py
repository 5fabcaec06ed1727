"""Label hand photos: 3D joints, mesh, calibrated uncertainty and texture.

    import annotator
    labels = annotator.load("default").predict(["hand.jpg"])

docs/api.md lists the public names. Each is imported at first use, so that `import annotator` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from annotator.errors import UserError

if TYPE_CHECKING:
    from annotator.commands.annotate import annotate
    from annotator.commands.detect import detect
    from annotator.commands.filter import Filtered, Keep, filter_labels
    from annotator.commands.fit import fit
    from annotator.commands.track import track as track_labels
    from annotator.export import Exported, export_labels
    from annotator.job.options import ComputeOptions
    from annotator.job.record import RunRecord
    from annotator.labels.label import Label
    from annotator.photos.errors import PhotoError
    from annotator.predictor import Predictor, load
    from annotator.sources.entry import Camera

    __version__: str

__all__ = [
    "Camera",
    "ComputeOptions",
    "Exported",
    "Filtered",
    "Keep",
    "Label",
    "PhotoError",
    "Predictor",
    "RunRecord",
    "UserError",
    "__version__",
    "annotate",
    "detect",
    "export_labels",
    "filter_labels",
    "fit",
    "load",
    "track_labels",
]

#: Public name -> module and name there.
_PUBLIC = {
    "Camera": ("annotator.sources.entry", "Camera"),
    "ComputeOptions": ("annotator.job.options", "ComputeOptions"),
    "Exported": ("annotator.export", "Exported"),
    "Filtered": ("annotator.commands.filter", "Filtered"),
    "Keep": ("annotator.labels.filter_file", "Keep"),
    "Label": ("annotator.labels.label", "Label"),
    "PhotoError": ("annotator.photos.errors", "PhotoError"),
    "Predictor": ("annotator.predictor", "Predictor"),
    "RunRecord": ("annotator.job.record", "RunRecord"),
    "annotate": ("annotator.commands.annotate", "annotate"),
    "detect": ("annotator.commands.detect", "detect"),
    "export_labels": ("annotator.export", "export_labels"),
    "filter_labels": ("annotator.commands.filter", "filter_labels"),
    "fit": ("annotator.commands.fit", "fit"),
    "load": ("annotator.predictor", "load"),
    # Not `track`: the package annotator.track has that name.
    "track_labels": ("annotator.commands.track", "track"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'annotator' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("amvur-annotator")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
