"""The report: goals, and no markup from a model's output."""

import numpy as np

from seed_jax.quickstart.measure import Example, Measurements
from seed_jax.quickstart.report_page import write_report


def test_model_output_is_escaped_and_goals_are_judged(tmp_path):
    example = Example("describe", (np.zeros((4, 4, 3), np.uint8),), "what?", "<script>", None, False)
    numbers = dict.fromkeys(("caption_held_out_attributes", "answer_held_out_all"), 0.5)
    numbers |= {f"{name}_attributes": 1.0 for name in ("rebuilt", "drawn", "edited")}
    page = write_report(tmp_path, Measurements(numbers, (example,)), {"images": 1.0}).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<td>not reached") == 2
    assert page.count("<td>reached") == 3
