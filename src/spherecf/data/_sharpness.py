"""Sharpness, the training-free baseline every learned confidence has to beat."""

import cv2
import numpy as np
from numpy.typing import NDArray


def sharpness(image: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey image: grows with fine detail, also with noise.

    Args:
        image: uint8 RGB (height, width, 3).

    Example:
        >>> flat = np.full((112, 112, 3), 90, np.uint8)
        >>> sharpness(flat)
        0.0
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())
