"""Figures in docs/deploy.md are those of the results file."""

from tests.commands.test_figures import document, results, table

RESULTS, DOCUMENT = "2026-11-27_export", "docs/deploy.md"


def milliseconds(row, variant, batch, length):
    cells = [c for c in row["latency"] if (c["batch"], c["length"], c["threads"]) == (batch, length, 1)]
    return cells[0]["variants"][variant]["median_ms"]


def test_scores_and_sizes():
    rows = results(RESULTS)["rows"]
    shown = table(DOCUMENT, "model")
    assert shown.keys() == {"demo's student", "teacher on SST-2"}
    for name, cells in shown.items():
        quality, sizes = rows[name]["quality"], rows[name]["bytes"]
        metric = "loss" if "loss" in quality["PyTorch"] else "sst2 accuracy"
        expected = [f"{quality[variant][metric]:.3f}" for variant in ("PyTorch", "ONNX", "int8")]
        expected += [f"{sizes[file] / 1e6:.1f} MB" for file in ("PyTorch", "model.onnx", "model_int8.onnx")]
        assert cells == expected
        assert rows[name]["int8"]["written"] and rows[name]["int8"]["margin"] == rows[name]["int8"]["default_margin"]
    base = rows["BERT-base, random weights"]["bytes"]
    assert f"{base['model.onnx'] / 1e6:.0f} MB as `model.onnx`" in document(DOCUMENT)
    assert f"{base['model_int8.onnx'] / 1e6:.0f} MB as `model_int8.onnx`" in document(DOCUMENT)


def test_the_outlier():
    row = results(RESULTS)["rows"]["demo's student, one outlier"]
    assert row["int8"]["written"] is False
    assert f"its int8 version is {row['int8']['fall']:.2f} nats worse: refused" in document(DOCUMENT)


def test_latencies():
    row = results(RESULTS)["rows"]["demo's student"]
    shown = table(DOCUMENT, "batch x tokens")
    assert len(shown) == 6
    for name, cells in shown.items():
        batch, length = map(int, name.split(" x "))
        variants = ("teacher, PyTorch", "PyTorch", "ONNX", "int8")
        assert cells == [f"{milliseconds(row, variant, batch, length):.2f}" for variant in variants]
    ratios = {
        (batch, length): milliseconds(row, "int8", batch, length) / milliseconds(row, "PyTorch", batch, length)
        for batch, length in ((1, 32), (32, 512))
    }
    assert f"int8 takes {ratios[1, 32]:.2f} times PyTorch's time" in document(DOCUMENT)
    assert f"it takes {ratios[32, 512]:.2f} times" in document(DOCUMENT)
