"""The fixed numbers of every evaluation, so that evaluations can be compared. Pure: no torch."""

LOSS_ROWS = 64  # samples of the loss, over all timesteps
PICTURES = 4  # pictures of the plain sentence; each edit is drawn once
STEPS = 20  # of DDIM
GUIDANCE = 4.0


def cost_rows() -> int:
    """The cost of an evaluation in training rows. A training row also has a backward pass of about the same cost, hence
    the half."""
    return (LOSS_ROWS + 2 * PICTURES * STEPS * 2) // 2
