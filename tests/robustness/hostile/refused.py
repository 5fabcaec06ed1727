"""Sources that must raise a UserError as a whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.robustness.hostile.expected import Run
from tests.robustness.hostile_photos import encoded


def write_refused(folder: Path, picture: Image.Image) -> list[Run]:
    """Write the sources and return one run per source."""
    folder.mkdir(parents=True)
    (folder / "good.jpg").write_bytes(encoded(picture, "JPEG"))
    texts = {
        "empty.csv": "",
        "no rows.csv": "path,x1,y1,x2,y2\n",
        "no places.csv": "a,b\n1,2\n",
        "half a box.csv": "path,x1,x2\ngood.jpg,1,2\n",
        "nearly.csv": "pth,side\ngood.jpg,left\n",
        "noise.csv": "\0\0\x01\x02",
        "empty.txt": "",
        "blank.txt": "\n\n  \n",
        "empty.jsonl": "",
        "broken.jsonl": "{\n",
        "array.jsonl": "[1]\n",
        "no places.jsonl": '{"a": 1}\n',
        "numbers.jsonl": '{"uri": 7}\n',
        "nothing here.jpg.txt": "",
    }
    runs = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        runs.append(Run("refused", folder / name))
    tables = {
        "no columns": {},
        "no photos": {"a": [1]},
        "numbers as photos": {"image": [7]},
        "lists as photos": {"image": [[1, 2]]},
        "text as boxes": {"uri": ["good.jpg"], "box_xyxy": [[True]]},
        "dates as sides": {"uri": ["good.jpg"], "is_right": [1.5]},
        "lists as focal lengths": {"uri": ["good.jpg"], "focal_px": [[3.0]]},
        "no rows": {"uri": pa.array([], pa.string())},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        runs.append(Run("refused", folder / f"{name}.parquet"))
    (folder / "empty").mkdir()
    return [
        *runs,
        *(Run("refused", folder / name) for name in ("empty", "not there", "not there.csv", "*.nothing")),
    ]
