from pathlib import Path
from typing import Any

import pytest

from shrinkage.core.errors import InputError
from shrinkage.training import resolve
from shrinkage.training.config import override, read_yaml
from shrinkage.training.recipes import RECIPES


@pytest.mark.parametrize("data", RECIPES)
def test_the_recipe_of_the_data_set_fills_what_is_not_given(data: str) -> None:
    config = resolve({"data": data, "lr": 0.5})
    recipe = RECIPES[data]
    assert (config.model, config.epochs, config.batch_size) == (recipe.model, recipe.epochs, recipe.batch_size)
    assert config.lr == 0.5


@pytest.mark.parametrize(("name", "value"), [("seed", 1 << 32), ("seed", -1), ("threads", 0), ("threads", 10**12)])
def test_numbers_beyond_what_the_machine_takes_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be"):
        resolve({"data": "digits", name: value})


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = resolve({"data": "mnist", "data_dir": "/some where", "granularity": "2:4", "lr": 1e-5, "seed": 3})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert resolve(read_yaml(path)) == config


def test_a_file_written_by_hand_is_read_as_meant(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: digits\nlr: 5e-4\ngranularity: 2:4\nbatch-size: 16\ncompare_dense: no\ndata_dir:\n")
    config = resolve(read_yaml(path))
    assert (config.lr, config.granularity, config.sparsity) == (5e-4, "2:4", 0.5)
    assert (config.batch_size, config.compare_dense, config.data_dir) == (16, False, None)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n")
    assert resolve(read_yaml(path)) == resolve({})


def test_a_budget_takes_the_place_of_the_sparsity(tmp_path: Path) -> None:
    config = resolve({"macs": 0.1})
    assert (config.sparsity, config.macs) == (None, 0.1)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert resolve(read_yaml(path)) == config
    assert resolve(override(read_yaml(path), {"sparsity": 0.8})) == resolve({"sparsity": 0.8})
    assert resolve(override({"sparsity": "0.9", "seed": "3"}, {"macs": 0.2})) == resolve({"macs": 0.2, "seed": 3})
    assert resolve(override({"sparsity": "0.9"}, {"seed": 3})).sparsity == 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsty": 0.9}, "no setting 'sparsty'; did you mean 'sparsity'"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"data": "mnits"}, "data 'mnits' is not known; did you mean 'mnist'"),
        ({"method": "hal"}, "did you mean 'halo'"),
        ({"optimizer": "adamw2"}, "did you mean 'adamw'"),
        ({"schedule": "cos"}, "did you mean 'cosine'"),
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\).*got 1.0"),
        ({"sparsity": 0}, "sparsity must be"),
        ({"sparsity": float("nan")}, "sparsity must be"),
        ({"sparsity": "much"}, "sparsity must be a number, got 'much'"),
        ({"macs": 1.0}, r"macs must be in \(0, 1\), such as 0\.1.*got 1.0"),
        ({"macs": "few"}, "macs must be a number, got 'few'"),
        ({"macs": 0.1, "sparsity": 0.9}, "a sparsity or macs, one of them, got sparsity=0.9 and macs=0.1"),
        ({"macs": 0.1, "granularity": "2:4"}, "2:4 fixes the sparsity at 0.5, but macs is set to 0.1; leave it out"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be"),
        ({"lr": 0}, "lr must be a number greater than 0"),
        ({"lr": float("inf")}, "lr must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"compare_dense": "maybe"}, "compare_dense must be true or false, got 'maybe'"),
        ({"compare_dense": 1}, "compare_dense must be true or false, got 1"),
        ({"model": ["mlp"]}, r"model must be text, got \['mlp'\] \(list\)"),
        ({"granularity": "rows"}, "granularity 'rows' is not known"),
        ({"granularity": "4:2"}, "N:M needs"),
        ({"granularity": "2:4", "sparsity": 0.9}, "2:4 fixes the sparsity at 0.5"),
        ({"device": "gpu"}, "device 'gpu' is not known"),
        ({"device": "cpu:1"}, "device 'cpu:1' is not known"),
        ({"device": "cuda:99"}, "CUDA device"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty: 0.9\n", "run.yaml: there is no setting 'sparsty'; did you mean 'sparsity'"),
        ("- 1\n- 2\n", "must hold lines such as"),
        ("a: [1\n", "is not valid YAML: .*line 1"),
        (b"\xff\xfe\x00", "UTF-8"),
        (None, "cannot be read: no such file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_yaml(path)
