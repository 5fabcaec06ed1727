"""MANO's mesh: the number of vertices and the fingertips among them. Light to import, unlike `mano.py`."""

from __future__ import annotations

from annotator.errors import UserError

VERTEX_COUNT = 778

#: FreiHAND's choice, thumb to little, so that J3 has the same meaning. smplx uses 554 and 671 for the ring and the
#: little finger.
TIP_VERTICES = (744, 320, 443, 555, 672)

#: HO3D's choice, thumb to little.
HO3D_TIP_VERTICES = (744, 333, 444, 555, 672)


def check_mano_vertices(title: str, hand_id: str | None, vertex_count: int) -> None:
    """Check that hands of a model can be submitted: benchmarks compare MANO's vertices one by one.

    Raises:
        UserError: `vertex_count` is not MANO's; the message names the benchmark `title` and the hand model.
    """
    if vertex_count != VERTEX_COUNT:
        raise UserError(
            f"{title} compares MANO's {VERTEX_COUNT} vertices, but hand model {hand_id} has "
            f"{vertex_count}: submit a checkpoint trained with --hand mano:PATH"
        )
