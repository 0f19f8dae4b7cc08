"""A lottery ticket: handwritten digits with a fiftieth of the weights, in six trainings instead of one.

Needs scikit-learn for the digits. Run: python examples/lottery_ticket.py
"""

import torch
from torch import nn

import shrinkage
from shrinkage.data import batches, load
from shrinkage.models import build

EPOCHS, SPARSITY, ROUNDS = 10, 0.98, 5


@torch.no_grad()
def accuracy(model: nn.Module, data) -> float:
    guesses = model(data.prepare(data.test.x)).argmax(1)
    return 100 * (guesses == data.test.y).float().mean().item()


def main() -> None:
    torch.set_num_threads(1)  # quicker for tensors as small as these
    data = load("digits")
    loader = batches(data.train, 64, shuffle=True)
    steps = EPOCHS * len(loader)

    def train(model, run):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        # Later rounds begin at the rewinding point: the schedule and the order of the data go on from there.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - (run.first_step + step) / steps)
        run.attach(optimizer)
        for epoch in range(run.first_step // len(loader), EPOCHS):
            loader.sampler.set_epoch(epoch)
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(data.prepare(x)), y).backward()
                optimizer.step()
                schedule.step()
        return accuracy(model, data)

    for rewind in ("weights", "learning-rate"):
        torch.manual_seed(0)
        model = build("lenet-300-100", data)
        ticket = shrinkage.LotteryTicket(SPARSITY, ROUNDS, rewind=rewind, rewind_to=1 / EPOCHS)  # the first epoch's end
        print(f"rewinding the {rewind}, accuracies in %:\n{ticket.run(model, train, steps)}\n")
    print(shrinkage.footprint(model, data.prepare(data.test.x[:1])))


if __name__ == "__main__":
    main()
