"""Methods that leave neurons or bits out, through the same command as the others."""

import pytest
import torch

from shrinkage.core.errors import InputError
from shrinkage.training.config import read_yaml, resolve
from shrinkage.training.run import inspect, network, train


@pytest.fixture
def run(tmp_path):
    def go(**options):
        config = resolve({"data": "digits", "epochs": 3, "device": "cpu", "threads": 1, **options})
        return train(config, out=tmp_path, tell=lambda line: None)

    return go


def test_noiseout_leaves_a_smaller_network(run):
    folder, summary = run(method="noiseout", sparsity=0.8)
    model, again = network(folder.path)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left <= 0.2 * summary.parameters
    assert summary.macs < 0.3 * summary.dense_macs
    assert summary.bytes < 0.25 * summary.dense_bytes
    assert 0.7 < summary.sparsity < 1
    assert again == summary
    assert summary.accuracy > 80
    assert summary.dense_accuracy > 90


def test_conntra_leaves_three_values_a_layer(run):
    folder, summary = run(method="conntra", compare_dense=False)
    model, _ = network(folder.path)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            assert len(layer.weight.unique()) <= 3
    assert summary.accuracy > 60
    assert summary.parameters / 4 < summary.bytes < summary.dense_bytes / 14
    assert summary.zeros == sum(int((p == 0).sum()) for n, p in model.named_parameters() if n.endswith("weight"))
    total = inspect(folder.path).total
    assert (total.bits, total.sparse_bytes, total.additions) == (2, summary.bytes, summary.macs)
    assert ">Additions<" in folder.report.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "noiseout", "macs": 0.1}, "noiseout knows no budget of multiplications"),
        ({"method": "noiseout", "granularity": "row"}, "noiseout has no granularity"),
        ({"method": "noiseout", "devices": 2}, "noiseout trains on one device"),
        ({"method": "conntra", "sparsity": 0.9}, "conntra has no sparsity to reach"),
        ({"method": "conntra", "macs": 0.1}, "conntra knows no budget of multiplications"),
        ({"method": "conntra", "regularizer": "dropfilter"}, "conntra needs a network without masks"),
        ({"method": "conntra", "lr": 5.0}, "conntra makes no steps of an optimiser, so that lr has no effect on it"),
        ({"method": "conntra", "batch_size": 7}, "batch_size has no effect on it; leave it out"),
        ({"method": "conntra", "optimizer": "adam"}, "optimizer has no effect"),
        ({"method": "conntra", "weight_decay": 0.3}, "weight_decay has no effect"),
        ({"method": "conntra", "schedule": "step"}, "schedule has no effect"),
    ],
)
def test_what_they_cannot_do_is_said(options, message):
    with pytest.raises(InputError, match=message):
        resolve({"data": "digits", **options})


def test_what_a_conntra_run_has_written_can_be_read_again(tmp_path):
    config = resolve({"data": "mnist", "method": "conntra", "epochs": 3, "model": "mlp"})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert resolve(read_yaml(tmp_path / "config.yaml")) == config


def test_conntra_says_which_networks_it_cannot_train(run):
    with pytest.raises(InputError, match="CoNNTrA"):
        run(model="resnet-20", method="conntra")
