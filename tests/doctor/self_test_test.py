"""The recorded outputs are PyTorch's, and the self-test passes here and notices a wrong number."""

import numpy as np
import pytest

from seed_jax.doctor import cases, self_test


@pytest.mark.slow
def test_recorded_outputs_are_those_of_pytorch():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.doctor import record

    recorded = cases.goldens()
    for name, value in record.outputs().items():
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(value, recorded[name], err_msg=name)
        elif name == "margin":
            np.testing.assert_allclose(value, recorded[name], rtol=1e-2, atol=1e-4)
        else:  # float32 sums in another order
            np.testing.assert_allclose(value, recorded[name], atol=2e-6 * np.abs(value).max(), err_msg=name)


def test_weights_and_inputs_never_change():
    assert cases.inputs()["tokens"][0, :4].tolist() == [394, 270, 181, 425]
    assert float(cases.uniform("images", (1,))[0]) == 1.0628012418746948


@pytest.mark.slow
def test_everything_passes_on_this_machine():
    outcomes = self_test.run_self_test()
    assert all(outcome.passed for outcome in outcomes), "\n".join(outcome.line() for outcome in outcomes)
    assert len(outcomes) == 19


def test_a_wrong_number_fails_and_an_error_is_a_row(monkeypatch):
    changed = dict(cases.goldens())
    changed["logits"] = changed["logits"] * 1.01
    monkeypatch.setattr(cases, "goldens", lambda: changed)
    monkeypatch.setattr(cases, "tokenizer_params", dict)
    monkeypatch.setattr(cases, "decoder_params", dict)
    monkeypatch.setattr(self_test, "load_config", lambda _: 1 / 0)
    outcomes = {(outcome.name, outcome.precision): outcome for outcome in self_test.run_self_test()}
    assert not outcomes["logits", "highest"].passed
    assert outcomes["logits", "default"].passed  # 1 % is within bfloat16's tolerance
    assert outcomes["tokenizer", "highest"].value is None
    assert "ZeroDivisionError" in outcomes["whole run", "default"].meaning
