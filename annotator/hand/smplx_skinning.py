"""Pose MANO with `smplx`, from the extra `mano`. Its licence is non-commercial, like MANO's own."""

from __future__ import annotations

import contextlib
import io

from torch import Tensor, nn

from annotator.errors import UserError
from annotator.hand.model import HandModel


class SmplxSkinning(nn.Module):
    """Pose mesh and skeleton of a `HandModel`, with the interface of `skinning.Skinning`.

    Raises:
        UserError: `smplx` is not installed.
    """

    def __init__(self, hand: HandModel) -> None:
        super().__init__()
        try:
            import smplx
            from smplx.utils import Struct
        except ImportError:
            raise UserError(
                "MANO needs smplx, which is not installed: pip install 'amvur-annotator[mano]' (non-commercial)"
            ) from None
        data = Struct(
            v_template=hand.v_template,
            f=hand.faces,
            shapedirs=hand.shapedirs,
            posedirs=hand.posedirs,
            J_regressor=hand.J_regressor,
            weights=hand.weights,
            kintree_table=hand.kintree_table.copy(),
            hands_mean=hand.hands_mean,
            hands_components=hand.hands_components,
        )
        # smplx prints a warning that the hand has only 10 shape coefficients.
        with contextlib.redirect_stdout(io.StringIO()):
            self.mano = smplx.MANOLayer("", data_struct=data, is_rhand=True, create_body_pose=False)

    def forward(self, rotations: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """Map rotations (B, 16, 3, 3) and betas (B, 10) to vertices (B, V, 3) and joints (B, 16, 3), metres."""
        posed = self.mano(global_orient=rotations[:, :1], hand_pose=rotations[:, 1:], betas=betas)
        return posed.vertices, posed.joints
