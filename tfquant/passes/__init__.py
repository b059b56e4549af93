"""Graph in, graph out, with the same outputs: `PASSES`, in the order in which they run."""

from tfquant.passes.affine import merge_affine
from tfquant.passes.fold import fold_forward
from tfquant.passes.fuse import fuse
from tfquant.passes.masks import hide_scores
from tfquant.passes.merge import merge_clamps
from tfquant.passes.ones import make_ones
from tfquant.passes.permutes import cancel_permutes, delay_permutes
from tfquant.passes.residuals import keep_residuals

PASSES = (
    delay_permutes,  # First: what stands between permutations keeps them from meeting.
    cancel_permutes,  # Then they meet; what they hid from each other are neighbours now.
    merge_affine,  # Before anything is made of a factor and a shift.
    merge_clamps,  # Before `fuse`, which takes a clamp only where one call reads the kernel.
    fold_forward,  # Before `fuse`, which would make a kernel of the batch norm.
    hide_scores,  # Before grids are placed, which would reach down to -1e9.
    keep_residuals,  # When all readers are known, and before float sums take clamps.
    fuse,  # Behind all that moves calls: a kernel and what it computes as well are one from here.
    make_ones,  # Last: the batch norms that no kernel took.
)


def run_passes(graph) -> None:
    """Runs all passes on `graph`, in order."""
    for rewrite in PASSES:
        rewrite(graph)


__all__ = ["PASSES", "run_passes"]
