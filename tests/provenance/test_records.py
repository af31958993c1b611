"""Records of older versions."""

from __future__ import annotations

from chisep.provenance.records import read_record


def test_the_r2_model_of_older_records_stands_in_a_warning(tmp_path):
    path = tmp_path / "relaxometry.json"
    path.write_text('{"outputs": {}, "warnings": ["few echoes: R2 is that of one exponential, which …"]}')
    assert read_record(path).facts == {"R2Model": "exponential"}
    path.write_text('{"outputs": {}, "facts": {"R2Model": "epg"}, "warnings": []}')
    assert read_record(path).facts == {"R2Model": "epg"}
