"""Files of every version of the format, kept forever: they still load, and today's writer still writes them.

``python tests/deploy/test_files_golden.py`` writes those that are missing. One that is there is never written anew: a
change that would need it is a new version of the format.
"""

from pathlib import Path

import files_reader
import numpy as np
import pytest
import torch

from shrinkage.deploy.files import describe, load, save

GOLDEN = Path(__file__).parent / "golden"
MODES = {
    "v1-exact": ("fp32", False),
    "v1-fp16": ("fp16", False),
    "v1-int8": ("int8", False),
    "v1-exact-zstd": ("fp32", True),
}
METADATA = {"author": "shrinkage", "note": "95 % Nullen"}


def numbers(*shape, every=1, salt=0):
    """Numbers in [-0.5, 0.5) from arithmetic alone, which no generator can change; about one in ``every`` is kept."""
    mixed = (np.arange(np.prod(shape), dtype=np.uint64) * 2654435761 + salt * 40503) % 2**32
    values = ((mixed >> 8) / 2**24 - 0.5).astype(np.float32)
    kept = (mixed * 2246822519 % 2**32 >> 16) % every == 0
    return torch.from_numpy(np.where(kept, values, np.float32(0))).reshape(shape)


def state():
    spread = torch.zeros(30, 70)
    spread.view(-1)[199::200] = numbers(10) + 1
    bits = [0x7FC00001, 0x7F800001, 0x7F800000, -0x800000, 1, -0x7FFFFFFF, 0]
    embedding = numbers(12, 25, every=4)
    return {
        "rice.weight": numbers(30, 50, every=20),
        "mask.weight": numbers(5, 5, 3, 3, every=2, salt=1),
        "gaps.weight": spread,
        "dense.weight": numbers(5, 17, salt=2) + 1,
        "zero.weight": torch.zeros(30, 30),
        "embedding.weight": embedding,
        "head.weight": embedding,
        "half": numbers(20, 20, every=10).half(),
        "brain": numbers(20, 20, every=10, salt=3).bfloat16(),
        "double": numbers(20, 20, every=10, salt=4).double(),
        "special": torch.tensor(bits, dtype=torch.int32).view(torch.float32),
        "norm.running_var": torch.ones(60),
        "norm.num_batches_tracked": torch.tensor(1234567890123),
        "keep": torch.arange(11) % 3 == 0,
        "levels": torch.arange(-4, 4, dtype=torch.int8),
        "empty": torch.zeros(0, 3),
    }


def same(a, b):
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def expected(values):
    """What the file should hold, computed here."""
    found = dict(state())
    for name, tensor in found.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or not tensor.numel() or values == "fp32":
            continue
        if values == "int8":
            if int(tensor.count_nonzero()) * (tensor.element_size() - 1) > 4 * len(tensor) + 128:
                wide = tensor.double() if tensor.dtype == torch.float64 else tensor.float()
                scales = (wide.abs().flatten(1).amax(1) / 127).float()
                scale = scales.reshape(-1, *[1] * (tensor.ndim - 1))
                codes = (wide / scale.where(scale > 0, 1)).round()
                found[name] = (codes.float() * scale + 0.0).to(tensor.dtype)
        elif tensor.element_size() > 2:
            found[name] = (tensor.to({"fp16": torch.float16, "bf16": torch.bfloat16}[values]) + 0.0).to(tensor.dtype)
    return found


@pytest.mark.parametrize("name", MODES)
def test_it_still_holds_the_same_tensors(name):
    wanted = expected(MODES[name][0])
    for found in (load(GOLDEN / f"{name}.safetensors"), files_reader.read(GOLDEN / f"{name}.safetensors")):
        assert list(found) == list(wanted)
        assert all(same(found[key], tensor) for key, tensor in wanted.items())
        assert found["head.weight"] is found["embedding.weight"]
    assert describe(GOLDEN / f"{name}.safetensors").metadata == METADATA


@pytest.mark.parametrize("name", [name for name, (_, compress) in MODES.items() if not compress])
def test_it_would_be_written_the_same_today(tmp_path, name):
    save(state(), tmp_path / "now", values=MODES[name][0], metadata=METADATA)
    assert (tmp_path / "now").read_bytes() == (GOLDEN / f"{name}.safetensors").read_bytes()


def test_every_kind_of_index_is_among_them_and_they_are_small():
    assert sum((GOLDEN / f"{name}.safetensors").stat().st_size for name in MODES) < 20_000
    codecs = " ".join(t.codec for name in MODES for t in describe(GOLDEN / f"{name}.safetensors").tensors)
    for part in ("rice4", "mask", "gaps", "dense", "F64", "F32", "F16", "BF16", "I8", "zstd", "same as"):
        assert part in codecs


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (values, compress) in MODES.items():
        path = GOLDEN / f"{name}.safetensors"
        if not path.exists():
            save(state(), path, values=values, compress=compress, metadata=METADATA)
            print(describe(path))
