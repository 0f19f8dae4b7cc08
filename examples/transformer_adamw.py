"""HALO on a small Transformer under AdamW and bfloat16 autocast, with a moving average of the weights.

The task: tell whether a sequence of brackets is balanced. Run: python examples/transformer_adamw.py
"""

import torch
from torch import Tensor, nn

import shrinkage

LENGTH, STEPS = 12, 300


def brackets(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences of 0 (open) and 1 (close), half of them balanced."""
    x = torch.rand(count, LENGTH, generator=generator).argsort(1) % 2  # as many open as close
    depth = (1 - 2 * x).cumsum(1)
    x = torch.where((depth.amin(1, keepdim=True) < 0) & (torch.arange(count) % 2 == 0)[:, None], x.sort(1).values, x)
    return x, ((1 - 2 * x).cumsum(1).amin(1) >= 0).long()


class Classifier(nn.Module):
    """Two encoder layers on the average of whose outputs a linear head decides."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(2, width)
        self.place = nn.Parameter(torch.randn(LENGTH, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for sequences of shape (batch, length)."""
        return self.head(self.encoder(self.embed(x) + self.place).mean(1))


def main() -> None:
    torch.set_num_threads(1)  # quicker for tensors as small as these
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98))

    halo = shrinkage.HALO(model, sparsity=0.9, steps=STEPS).attach(optimizer)  # attention and linear weights

    for _ in range(STEPS):
        x, y = brackets(64, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)

    print(halo.finalize())
    halo.apply_to(average)  # an average becomes sparse by getting the same zeros
    x, y = brackets(2000, generator)
    for name, net in (("network", model), ("average", average)):
        print(f"{name}: {(net.eval()(x).argmax(1) == y).float().mean():.1%} right")


if __name__ == "__main__":
    main()
