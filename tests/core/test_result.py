from shrinkage.core.result import Layer, Sparsified


def test_table_and_dict():
    result = Sparsified("HALO", (Layer("a.weight", 900, 1000), Layer("b.weight", 5, 10)), 905)
    assert (result.zeros, result.units, result.sparsity) == (905, 1010, 905 / 1010)
    lines = str(result).splitlines()
    assert lines[0] == "HALO"
    assert any(line.split() == ["a.weight", "1,000", "100", "90.00%"] for line in lines)
    assert lines[-1].split() == ["total", "1,010", "105", "89.60%"]
    assert result.to_dict() == {
        "method": "HALO", "zeros": 905, "units": 1010, "sparsity": 905 / 1010, "target": 905,
        "layers": {"a.weight": {"zeros": 900, "units": 1000}, "b.weight": {"zeros": 5, "units": 10}},
    }  # fmt: skip
