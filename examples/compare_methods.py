"""Swapping the method is swapping a word: five penalties, on weights and on whole neurons.

An illustration, not a comparison: one image of the test set is 0.3 %, and nothing is tuned.

Needs scikit-learn for the digits. Run: python examples/compare_methods.py
"""

import torch
from torch import nn

import shrinkage
from shrinkage.core.tables import render
from shrinkage.data import batches, load
from shrinkage.models import build

EPOCHS, SEEDS = 15, 2
METHODS = [shrinkage.HALO, shrinkage.Bridge, shrinkage.MCP, shrinkage.SWS, shrinkage.Lasso]
TARGETS = [  # sparsity, what is removed as one, what is left out: a row less in the last layer is a class less
    (0.99, shrinkage.Weight(), None),
    (0.9, shrinkage.Row(), "5.*"),
]


def train(data, seed: int, method, sparsity: float, **options) -> float:
    """Train with one method; test accuracy in percent."""
    torch.manual_seed(seed)
    model = build("lenet-300-100", data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = batches(data.train, 64, shuffle=True)
    sparsifier = method(model, sparsity, EPOCHS * len(loader), **options).attach(optimizer)
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.prepare(x)), y).backward()
            optimizer.step()
    sparsifier.finalize()
    with torch.no_grad():
        return 100 * (model(data.prepare(data.test.x)).argmax(1) == data.test.y).float().mean().item()


def main() -> None:
    torch.set_num_threads(1)  # quicker for tensors as small as these
    data = load("digits")
    rows = []
    for method in METHODS:
        row: list[object] = [method.__name__]
        for share, units, left in TARGETS:
            reached = [train(data, seed, method, share, granularity=units, exclude=left) for seed in range(SEEDS)]
            row.append(f"{sum(reached) / SEEDS:.1f} %")
        rows.append(row)
    print(render(["method", *(f"{share:.0%} zeros, {units}" for share, units, _ in TARGETS)], rows))


if __name__ == "__main__":
    main()
