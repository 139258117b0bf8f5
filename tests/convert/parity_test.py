import json

import ml_dtypes
import numpy as np

from seed_jax.convert.parity import Check, compare_tensors, make_report
from seed_jax.convert.tensors import LazyTensor, TensorDict


def tensors(**arrays) -> TensorDict:
    return TensorDict({n: LazyTensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}, "arrays")


WIDE = {f"layers.{i}.w": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3) + i for i in range(3)}
NARROW = {name: array.astype(ml_dtypes.bfloat16) for name, array in WIDE.items()}
CHECKS = (Check("logits", 1e-6, 1e-3, "far"), Check("codes", 0.0, 0.0, "many"))


def test_rounding_once_is_exact_and_anything_else_is_not():
    found = compare_tensors(tensors(**WIDE), tensors(**NARROW))
    assert all(one.exact for one in found)
    # Half a step of bfloat16, whose steps between 2 and 4 are 1/64.
    assert 0 < found[2].difference <= 1 / 128
    nudged = {**NARROW, "layers.1.w": NARROW["layers.1.w"] * ml_dtypes.bfloat16(1.01)}
    assert [one.exact for one in compare_tensors(tensors(**WIDE), tensors(**nudged))] == [True, False, True]
    whole = {"n": np.arange(3)}
    assert compare_tensors(tensors(**whole), tensors(**whole))[0].difference == 0


def test_the_report_lists_tensors_and_checks(tmp_path):
    pairs = [(tensors(**WIDE), tensors(**NARROW))]
    report = make_report("Export", {"from": "a"}, pairs, lambda: CHECKS, needs=["json"], what="logits")
    assert report.passed
    assert report.summary() == "3 of 3 tensors exact; logits 1e-06 (limit 0.001); codes 0 (limit 0): passed"
    text = report.save(tmp_path).read_text()
    assert text.startswith("# Export: passed\n")
    assert "| `layers.N.w` | 3 | 2 x 3 | float32 → bfloat16 | 0.00625 | yes |" in text
    stored = json.loads((tmp_path / "parity.json").read_text())
    assert stored["passed"]
    assert [one["name"] for one in stored["differences"]] == list(WIDE)
    assert "numpy" in stored["versions"]


def test_one_failure_fails_the_report(tmp_path):
    pairs = [(tensors(**WIDE), tensors(**NARROW))]
    for bad in (Check("logits", 2e-3, 1e-3, "far"), Check("logits", float("nan"), 1e-3, "far")):
        report = make_report("Export", {}, pairs, lambda bad=bad: (*CHECKS, bad), needs=[], what="logits")
        assert not report.passed
        assert report.save(tmp_path).read_text().startswith("# Export: FAILED\n")
    other = [(tensors(**WIDE), tensors(**{**NARROW, "layers.2.w": NARROW["layers.0.w"]}))]
    report = make_report("Export", {}, other, lambda: CHECKS, needs=[], what="logits")
    assert not report.passed
    assert "no: layers.2.w" in report.save(tmp_path).read_text()


def test_skipped_comparisons_are_noted():
    pairs = [(tensors(**WIDE), tensors(**NARROW))]
    absent = make_report("Export", {}, pairs, lambda: CHECKS, needs=["no_such_package"], what="logits")
    assert absent.summary() == "3 of 3 tensors exact; logits not compared (no_such_package not installed): passed"
    assert make_report("Export", {}, pairs, None, needs=[], what="logits").notes == (
        "logits not compared (skipped on request)",
    )
