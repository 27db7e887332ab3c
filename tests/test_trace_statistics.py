"""A trace of statistics has those of the arrays, whose definition is that of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_vit import batch, model

from minivit.tracing import Statistics, load_trace, trace


def test_a_trace_of_statistics_keeps_shapes_and_dtypes_in_a_file_too(tmp_path: Path) -> None:
    images, labels, _ = batch(2)
    vit = model()
    whole, light = trace(vit, images, labels), trace(vit, images, labels, statistics=True)
    light.save(tmp_path / "light.safetensors")
    for record in load_trace(tmp_path / "light.safetensors"):
        arrays = whole[record.name].quantities
        assert record.shapes == {name: arrays[name].shape for name in record.quantities}
        assert record.dtypes == {name: str(arrays[name].dtype) for name in record.quantities}
        assert (record.shapes, record.dtypes) == (light[record.name].shapes, light[record.name].dtypes)


def test_statistics_that_are_not_there_are_named() -> None:
    images, _, _ = batch(2)
    statistics = trace(model(), images)["head"].statistics
    assert "dy" not in statistics
    with pytest.raises(KeyError, match="there is no 'dy'; there are x, y, weight, bias"):
        statistics["dy"]


def test_statistics_are_those_of_the_arrays() -> None:
    images, labels, _ = batch()
    vit = model()
    whole, light = trace(vit, images, labels), trace(vit, images, labels, statistics=True)
    assert light.names == whole.names
    for record in light:
        of_arrays = whole[record.name].statistics
        # Those of parameters are in the record of the layer alone.
        left_out = set(of_arrays) - set(record.statistics)
        assert not left_out or record.is_op
        for quantity, found in record.statistics.items():
            assert found == of_arrays[quantity], (record.name, quantity)
    assert repr(light) == repr(whole)
    assert light["blocks.0.attn"].statistics["weights"].saturated == 0
    assert 0 < Statistics.of(np.array([1e-3, -0.5, 0.009, 2]), "slope").saturated < 1  # type: ignore[operator]  # of a slope it is not None


@pytest.mark.parametrize("size", [1, 5, 100_003])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_statistics_are_those_of_numpy(size: int, dtype: str) -> None:
    x = (1000 * (3 + np.random.default_rng(0).standard_normal(size))).astype(dtype)
    x[: size // 5] = 0
    s = Statistics.of(x)
    wide = x.astype(float)
    expected = np.linalg.norm(wide), wide.mean(), wide.std(), wide.min(), wide.max(), np.mean(wide == 0)
    np.testing.assert_allclose([s.norm, s.mean, s.std, s.min, s.max, s.zeros], expected, rtol=1e-12, atol=1e-9)
    counts, edges = np.histogram(wide, len(s.counts))
    if size > 1:
        np.testing.assert_allclose(s.edges, edges, rtol=1e-12, atol=1e-9)
        assert np.abs(np.cumsum(counts) - np.cumsum(s.counts)).max() <= 1e-4 * size, "numbers at the edges may differ"
    assert sum(s.counts) == s.size == size
    assert s.finite


def test_statistics_of_special_arrays() -> None:
    s = Statistics.of(np.array([np.nan, 1, np.inf, 3]))
    assert (s.finite, s.size, s.mean, s.max, sum(s.counts)) == (False, 4, 2, 3, 2)
    assert not Statistics.of(np.full(3, np.nan, np.float32)).finite
    assert Statistics.of(np.zeros((0, 3))).size == 0
    assert Statistics.of(np.full(7, 2.5)).counts[0] == 7
    assert Statistics.of(np.array([3 + 4j])).norm == 5
    assert Statistics.of(np.array([True, False])).zeros == 0.5
    assert Statistics.of(np.full(4, 3e38, np.float32)).rms == pytest.approx(3e38)
    assert Statistics.of(np.array([3.0, np.nan, 4.0])).rms == pytest.approx(12.5**0.5)
    for largest in (1e308, 1e-305):
        s = Statistics.of(np.array([-largest, largest]))
        assert (s.mean / largest, s.std / largest) == pytest.approx((0, 1))
        assert (s.counts[0], s.counts[-1]) == (1, 1)


@pytest.mark.parametrize("size", [1.5e308, 1e200, 1e-200, 5e-320])
def test_statistics_of_very_large_and_very_small_numbers(size: float) -> None:
    s = Statistics.of(np.array([size, -size, size, 0.0]))
    assert s.finite
    assert s.mean == pytest.approx(size / 4, rel=1e-3)
    assert s.std == pytest.approx(np.sqrt(11) / 4 * size, rel=1e-3)
    assert s.norm == pytest.approx(np.sqrt(3) * size if size < 1e308 else np.inf, rel=1e-3)
    assert (s.counts[0], s.counts[-1], sum(s.counts)) == (1, 2, 4)
