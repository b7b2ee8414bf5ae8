"""Test the scores of predicted distances and positions against SciPy, and by properties."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress

from jaxcyto.pretext_scores import calibration, constant_errors, results_table


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    known = {
        "distance_mm": rng.gamma(2, 5, 200).astype(np.float32),
        "coordinates_mm": rng.normal(size=(200, 2, 3)).astype(np.float32) * [5, 10, 3] + 4,
    }
    noise = {name: rng.normal(size=value.shape) for name, value in known.items()}
    predicted = {name: 3 + 0.5 * known[name] + noise[name] for name in known}
    return known, predicted


def test_lines_agree_with_scipy(pairs):
    known, predicted = pairs
    found = calibration(known, predicted)
    line: Any = linregress(predicted["distance_mm"], known["distance_mm"])
    after = line.intercept + line.slope * predicted["distance_mm"] - known["distance_mm"]
    assert found["distance_correlation"] == pytest.approx(line.rvalue, rel=1e-6)
    assert found["distance_mae_mm_recalibrated"] == pytest.approx(np.abs(after).mean(), rel=1e-6)
    expected = predicted["distance_mm"].std() / known["distance_mm"].std()
    assert found["distance_spread"] == pytest.approx(expected, rel=1e-6)
    truth, said = (each["coordinates_mm"].reshape(-1, 3) for each in pairs)
    residuals = np.zeros_like(truth)
    for axis in range(3):
        line: Any = linregress(said[:, axis], truth[:, axis])
        residuals[:, axis] = line.intercept + line.slope * said[:, axis] - truth[:, axis]
        assert found["coordinate_correlation_per_axis"][axis] == pytest.approx(line.rvalue)
    expected = np.linalg.norm(residuals, axis=1).mean()
    assert found["coordinate_mae_mm_recalibrated"] == pytest.approx(expected, rel=1e-6)
    expected = np.abs(residuals).mean(axis=0)
    np.testing.assert_allclose(found["coordinate_mae_mm_per_axis_recalibrated"], expected)


def test_recalibration_ignores_scale_and_offset(pairs):
    known, predicted = pairs
    moved = {name: 7 - 3 * value for name, value in predicted.items()}
    first, second = calibration(known, predicted), calibration(known, moved)
    for key in first:
        if "recalibrated" in key:
            np.testing.assert_allclose(first[key], second[key], rtol=1e-6)
        elif "correlation" in key:
            np.testing.assert_allclose(first[key], -np.array(second[key]), rtol=1e-6)
        else:
            np.testing.assert_allclose(3 * np.array(first[key]), second[key], rtol=1e-6)


def test_constant_predictions_and_truths_have_no_correlation(pairs):
    known, _ = pairs
    constant = {name: np.full_like(value, 17.3) for name, value in known.items()}
    found = calibration(known, constant)
    assert found["distance_correlation"] is None
    assert found["distance_spread"] == pytest.approx(0, abs=1e-6)
    expected = np.abs(known["distance_mm"] - known["distance_mm"].mean()).mean()
    assert found["distance_mae_mm_recalibrated"] == pytest.approx(expected, rel=1e-6)
    found = calibration(constant, known)
    assert found["distance_correlation"] is None and found["distance_spread"] is None
    assert "nan" not in results_table(found | errors_of(known))


def test_own_constants_are_the_best_ones(pairs):
    known, _ = pairs
    found = constant_errors(known, 3.0, (1.0, 2.0, 3.0))
    offset = known["coordinates_mm"].reshape(-1, 3) - [1, 2, 3]
    assert found["coordinate_mae_mm_constant"] == pytest.approx(
        np.linalg.norm(offset, axis=1).mean()
    )
    expected = np.abs(known["distance_mm"] - 3).mean()
    assert found["distance_mae_mm_constant"] == pytest.approx(expected)
    for shift in np.linspace(-20, 20, 41):
        at = constant_errors(known, shift, (shift, shift / 2, 4.0))
        for key in ("distance_mae_mm", "coordinate_mae_mm"):
            assert at[f"{key}_own_constant"] == found[f"{key}_own_constant"]
            assert at[f"{key}_constant"] >= found[f"{key}_own_constant"] - 1e-6


def errors_of(known):
    return {
        "distance_mae_mm": 1.5,
        "coordinate_mae_mm": 2.5,
        "coordinate_mae_mm_per_axis": [1.0, 2.0, 3.0],
    } | constant_errors(known, 3.0, (1.0, 2.0, 3.0))


def test_the_table_has_a_row_for_each_target(pairs):
    table = results_table(errors_of(pairs[0]) | calibration(*pairs), absolute_x=True).splitlines()
    assert [line.split("  ")[0] or line.split()[0] for line in table[1:3]] == [
        "distance, mm",
        "position, mm",
    ]
    assert [line.split()[0] for line in table[3:]] == ["|x|", "y", "z"]
    assert len({len(line) for line in table}) == 1
    cells = table[1].split()
    found = calibration(*pairs)
    assert cells[2] == "1.50" and cells[-1] == f"{found['distance_spread']:.2f}"
    assert cells[-2] == f"{found['distance_correlation']:.2f}"
