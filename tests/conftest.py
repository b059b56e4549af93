"""Fixtures that every test may use."""

import os

# Before TensorFlow is imported, or it is too late.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seed():
    """Makes what Keras draws the same in each test, whichever ran before."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    """A random generator with the same seed in each test."""
    return np.random.default_rng(0)
