import torch
from torch import nn

from shrinkage.data import Split
from shrinkage.training.evaluate import accuracy


class _Oracle(nn.Module):
    """Says the class that is written in the first feature; trains a dummy weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(nn.functional.one_hot(x[:, 0].long(), 5).float())


def test_the_share_of_right_answers_in_percent() -> None:
    y = torch.arange(1250) % 5
    x = torch.stack([torch.where(torch.arange(1250) < 1000, y, (y + 1) % 5)], 1)
    model = _Oracle()
    model.frozen.eval()
    assert accuracy(model, Split(x.float(), y), lambda batch: batch) == 80.0
    assert model.dropout.training
    assert not model.frozen.training
