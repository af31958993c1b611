from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chisep.io import nifti
from chisep.pipeline.engine import Stage, StageResult
from chisep.pipeline.files import VolumeCache
from chisep.pipeline.outputs import OUTPUTS

ROOT = Path(__file__).parents[2]


def stage(*inputs: Path) -> Stage:
    return Stage("some", "", inputs, [], {}, lambda _files: StageResult())


class TestVolumeCache:
    @pytest.fixture
    def paths(self, tmp_path) -> list[Path]:
        paths = [tmp_path / f"{name}.nii.gz" for name in "abc"]
        for number, path in enumerate(paths):
            nifti.save(path, np.full((4, 5, 6), number, dtype=np.float32), np.eye(4))
        return paths

    def test_what_is_read_last_goes_first(self, paths):
        a, b, c = paths
        cache = VolumeCache(most_bytes=2 * 4 * 5 * 6 * 4)
        cache.plan([stage(), stage(b), stage(a), stage(c)])
        for path in paths:
            cache.put(path, nifti.load(path).data)
        assert cache.get(c) is None
        assert cache.get(a) is not None
        assert cache.get(b) is not None

    def test_what_no_stage_reads_any_more_goes(self, paths):
        a, b, _ = paths
        cache = VolumeCache()
        cache.plan([stage(a), stage(b)])
        for path in (a, b):
            cache.put(path, nifti.load(path).data)
        cache.start(1)
        assert cache.get(a) is None
        assert not cache.is_read_later(b)

    def test_a_file_that_changed_is_read_again(self, paths):
        a = paths[0]
        cache = VolumeCache()
        cache.plan([stage(a)])
        cache.put(a, nifti.load(a).data)
        nifti.save(a, np.ones((4, 5, 6), dtype=np.float32), np.eye(4))
        assert cache.get(a) is None

    def test_a_copy_may_be_changed(self, paths):
        a = paths[0]
        cache = VolumeCache()
        cache.plan([stage(a), stage(a)])
        cache.put(a, nifti.load(a).data)
        first = cache.get(a)
        assert first is not None
        first += 1
        np.testing.assert_array_equal(cache.get(a), nifti.load(a).data)
        assert cache.get(a).flags.f_contiguous == nifti.load(a).data.flags.f_contiguous


def test_the_table_of_the_readme_is_that_of_the_catalogue():
    spec = importlib.util.spec_from_file_location("outputs_table", ROOT / "tools" / "outputs_table.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.START + tool.table() + tool.END in (ROOT / "README.md").read_text(encoding="utf-8")


def test_names_of_outputs_differ():
    names = [output.name + output.extension for output in OUTPUTS.values()]
    assert len(set(names)) == len(names)


def test_units_are_those_of_the_suffix():
    units = {(output.suffix, output.unit) for output in OUTPUTS.values() if output.unit}
    assert len({suffix for suffix, _ in units}) == len(units)


def test_several_threads_keep_volumes_at_a_time(tmp_path, request):
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    paths = [tmp_path / f"{number}" for number in range(200)]
    for path in paths:
        path.touch()
    cache = VolumeCache(most_bytes=20 * 8 * 4)
    cache.plan([stage(), stage(*paths)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: cache.put(path, np.zeros(8, dtype=np.float32)), paths))
    assert sum(cache.get(path) is not None for path in paths) == 20
