"""Networks of one pass: QSMnet, R2PRIMEnet and χ-sepnet, each a U-net between z-scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from chisep.networks.unet import Scale, UNet, UNetConfig
from chisep.physics.separation import Separation


class SinglePass(nn.Module):
    """One U-net from maps in ppm to maps in ppm.

    QSMnet (Yoon 2018, 10.1016/j.neuroimage.2018.06.030) goes from the local field to χ; R2PRIMEnet from
    R2*/D_r to R2'/D_r; χ-sepnet (Kim M. et al., Human Brain Mapping 2025) from [χ_QSM, field, R2'/D_r], or
    with R2*/D_r in the last channel, to [χ_pos, χ_neg].

    Parameters
    ----------
    unet
        Width, depth, normalisation.
    input_mean_ppm, input_sd_ppm, output_mean_ppm, output_sd_ppm
        Statistics of the training data, one number a channel.
    """

    def __init__(
        self,
        unet: UNetConfig,
        input_mean_ppm: Sequence[float],
        input_sd_ppm: Sequence[float],
        output_mean_ppm: Sequence[float],
        output_sd_ppm: Sequence[float],
    ) -> None:
        super().__init__()
        self.inputs = Scale(input_mean_ppm, input_sd_ppm)
        self.outputs = Scale(output_mean_ppm, output_sd_ppm)
        self.unet = UNet(len(input_mean_ppm), len(output_mean_ppm), unet)

    def forward(self, y_ppm: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, inputs, i, j, k) to (batch, outputs, i, j, k), both in ppm.

        Parameters
        ----------
        y_ppm
            Measured maps; 0 outside the mask.
        mask
            Brain, bool, shape (batch, 1, i, j, k). The result is 0 outside.
        """
        return self.outputs.undo(self.unet(self.inputs(y_ppm, mask)), mask)

    def intermediate_estimates(
        self,
        y_ppm: Tensor,
        mask: Tensor,
        _phi: Separation | None = None,
    ) -> list[Tensor]:
        """Return the one estimate in a list, as unrolled networks return theirs."""
        return [self(y_ppm, mask)]
