"""What image networks ask of their input."""

from __future__ import annotations

from shrinkage.core.errors import InputError


def image_shape(model: str, input_shape: tuple[int, ...], *, smallest: int) -> tuple[int, int, int]:
    """Check that ``input_shape`` is (channels, height, width) with sides of at least ``smallest``.

    Raises:
        InputError: if not; it names the model and a way out.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise InputError(
            f"{model} needs images (channels, height, width) of at least {smallest}×{smallest}, "
            f"got input_shape={tuple(input_shape)}; lenet-300-100 takes any shape"
        )
    channels, height, width = input_shape
    return channels, height, width
