import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkage.formats.malformed import Malformed
from shrinkage.formats.zstd import compress, decompress


def as_array(data):
    return np.frombuffer(data, np.uint8)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 100))
def test_what_is_compressed_comes_back_and_is_smaller(piece, times):
    data = piece * times
    frame = compress(as_array(data))
    if frame is not None:
        assert len(frame) < len(data)
        assert decompress(as_array(frame), len(data)) == data


def test_noise_is_left_as_it_is():
    assert compress(np.random.default_rng(0).integers(256, size=100_000, dtype=np.uint8)) is None
    assert compress(np.zeros(0, np.uint8)) is None


def test_skewed_bytes_come_near_their_entropy():
    shares = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    data = np.random.default_rng(0).choice(5, 200_000, p=shares).astype(np.uint8)
    entropy = -(shares * np.log2(shares)).sum() / 8
    assert entropy < len(compress(data)) / len(data) < 1.1 * entropy


@pytest.mark.parametrize("size", [0, 1, 999, 1001, 2**60])
def test_a_frame_of_another_size_is_refused_before_it_is_unpacked(size):
    frame = as_array(compress(np.zeros(1000, np.uint8)))
    with pytest.raises(Malformed, match=f"says it holds 1000 bytes, expected {size}"):
        decompress(frame, size)


def test_a_frame_that_does_not_say_its_size_is_refused():
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    with pytest.raises(Malformed, match="expected 1000"):
        decompress(as_array(silent), 1000)


def test_frames_that_lie_or_are_cut_off_or_continue_are_refused():
    frame = bytearray(compress(np.zeros(1000, np.uint8)))
    for bad in (frame[:-1], frame + b"x", frame[:3], b"", b"no frame", frame + frame):
        with pytest.raises(Malformed):
            decompress(as_array(bytes(bad)), 1000)
    longer = bytearray(zstandard.ZstdCompressor().compress(bytes(1001)))
    at = longer.index((1001 - 256).to_bytes(2, "little"))
    longer[at : at + 2] = (1000 - 256).to_bytes(2, "little")
    with pytest.raises(Malformed, match="cannot be read"):
        decompress(as_array(bytes(longer)), 1000)
