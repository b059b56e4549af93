"""A model whose layers are switched between schemes, without building it again."""

from tfquant.board.board import FLOAT_BITS, Board, Unit, check_choices
from tfquant.board.stage import Stage

__all__ = ["FLOAT_BITS", "Board", "Stage", "Unit", "check_choices"]
