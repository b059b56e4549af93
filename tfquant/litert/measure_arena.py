"""Runs a file once on TensorFlow Lite Micro; a process of its own, as damaged files may end it.

    python measure_arena.py BYTES < model.tflite

BYTES is the size of an arena that is large enough. What is taken of it goes to the standard error.
"""

import sys

import numpy as np
from tflite_micro import runtime


def main():
    """Runs the file on zeros and prints what of the arena is taken."""
    interpreter = runtime.Interpreter.from_bytes(
        sys.stdin.buffer.read(), arena_size=int(sys.argv[1])
    )
    number = 0
    while True:
        try:
            detail = interpreter.get_input_details(number)
        except (IndexError, RuntimeError):
            break
        interpreter.set_input(np.zeros(detail["shape"], detail["dtype"]), number)
        number += 1
    interpreter.invoke()
    interpreter.print_allocations()


if __name__ == "__main__":
    main()
