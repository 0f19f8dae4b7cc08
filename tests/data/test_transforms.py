import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from shrinkage.data.transforms import Normalise, PadCropFlip


def test_normalise_by_channel():
    x = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    out = Normalise(255, (0.5, 0.2), (0.25, 0.1))(x)
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_leaves_its_input_alone(dtype):
    x = torch.full((1, 1, 2, 2), 8, dtype=dtype)
    Normalise(16, (0.5,), (0.5,))(x)
    assert bool((x == 8).all())


def slow(image, row, column, mirrored, pad):
    """Pad, crop and mirror one image, one step at a time."""
    height, width = image.shape[1:]
    crop = functional.pad(image, (pad,) * 4)[:, row : row + height, column : column + width]
    return crop.flip(2) if mirrored else crop


@given(
    count=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    pad=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_every_image_gets_its_own_crop_and_flip(count, height, width, pad, seed):
    x = torch.arange(1, count * 2 * height * width + 1, dtype=torch.int32).reshape(count, 2, height, width)
    out = PadCropFlip(pad)(x, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randint(2 * pad + 1, (2, count), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator)
    expected = [slow(*args, pad) for args in zip(x, rows, columns, mirrored, strict=True)]
    assert torch.equal(out, torch.stack(expected))


def test_all_offsets_and_both_flips_occur_equally_often():
    # One lit pixel in the middle of 5×5 shows where an image went; not where its mirror image did.
    x = torch.zeros(20_000, 1, 5, 5, dtype=torch.uint8)
    x[:, :, 2, 2] = 1
    seen = PadCropFlip(pad=2)(x, torch.Generator().manual_seed(0)).float().mean(0).flatten()
    assert seen.sum().item() == pytest.approx(1)
    assert seen.tolist() == pytest.approx([1 / 25] * 25, abs=0.006)
    ramp = torch.arange(3, dtype=torch.uint8).expand(2000, 1, 1, 3)
    kept = (PadCropFlip(pad=0)(ramp)[:, 0, 0, 0] == 0).float().mean()
    assert kept.item() == pytest.approx(0.5, abs=0.05)


def test_the_generator_alone_decides():
    x = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8)
    augment = PadCropFlip()
    before = torch.random.get_rng_state()
    first, again = (augment(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, augment(x, torch.Generator().manual_seed(2)))
    assert first.dtype == torch.uint8


def test_both_can_be_pickled():
    for transform in (Normalise(255, (0.1,), (0.2,)), PadCropFlip(2)):
        assert pickle.loads(pickle.dumps(transform)) == transform
