"""Convert labels to files for other tools: `export_labels` writes one of `FORMATS`."""

from annotator.export.formats import FORMATS, Exported, export_labels

__all__ = ["FORMATS", "Exported", "export_labels"]
