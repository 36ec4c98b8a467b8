"""What every evaluation computes, so that two of them can be compared. Pure: no torch."""

LOSS_ROWS = 64  # draws of the loss, over all timesteps
PICTURES = 4  # of the plain sentence; and one of each sentence that asks for something more
STEPS = 20  # of DDIM
GUIDANCE = 4.0


def cost_rows() -> int:
    """What an evaluation costs in rows of training, which have a backward pass of about the same size too."""
    return (LOSS_ROWS + 2 * PICTURES * STEPS * 2) // 2
