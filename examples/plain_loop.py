"""HALO in a plain PyTorch loop: handwritten digits with a twentieth of the weights.

Needs scikit-learn for the digits. Run: python examples/plain_loop.py
"""

import torch
from torch import nn

import shrinkage
from shrinkage.data import batches, load
from shrinkage.models import build

EPOCHS, SPARSITY = 40, 0.95


@torch.no_grad()
def accuracy(model: nn.Module, data) -> float:
    guesses = model(data.prepare(data.test.x)).argmax(1)
    return 100 * (guesses == data.test.y).float().mean().item()


def main() -> None:
    torch.set_num_threads(1)  # quicker for tensors as small as these
    torch.manual_seed(0)
    data = load("digits")
    loader = batches(data.train, 64, shuffle=True)
    model = build("lenet-300-100", data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * len(loader)
    # High until the pattern is fixed, then down to zero while the survivors settle.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 4 * (1 - step / steps)))

    halo = shrinkage.HALO(model, sparsity=SPARSITY, steps=steps).attach(optimizer)

    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.prepare(x)), y).backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: {accuracy(model, data):.1f} %, {halo.wanted:.0%} zeros wanted, {halo.phase}")

    print(f"\n{halo.finalize()}\n\n{shrinkage.footprint(model, data.prepare(data.test.x[:1]))}")


if __name__ == "__main__":
    main()
