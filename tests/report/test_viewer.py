"""The viewer: its data decode to the maps, and in a browser it shows, reads and switches them."""

from __future__ import annotations

import base64
import json
import zlib

import nibabel as nib
import numpy as np
import pytest

from chisep.report import figures
from chisep.report.pages import VIEWER_SCRIPTS, script
from chisep.report.subject import Panel, SubjectReport, write_report
from chisep.report.viewer import ViewerMap, ViewerScan, encode
from tests.report.browser import opened
from tests.report.test_subject import ATTACK, Page

SHAPE = (40, 48, 36)
LAS = np.array([[-2.0, 0, 0, 40], [0, 2.0, 0, -50], [0, 0, 2.0, -30], [0, 0, 0, 1]])
"""First voxel axis to the patient's left: the pages have to mirror it."""


def decode(block: str, shape, *, predicted: bool) -> np.ndarray:
    """Integers of a block, decoded apart from the code of the page."""
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(block)), np.uint8).reshape(2, -1)
    stored = low.astype(np.int64) + 256 * high.astype(np.int64)
    stored = ((stored + 2**15) % 2**16 - 2**15).reshape(shape, order="F")
    if not predicted:
        return stored
    values = np.zeros([n + 1 for n in shape], np.int64)  # a border of zeros before the first voxels
    for i, j, k in np.ndindex(*shape):
        before = values[i, j + 1, k + 1] + values[i + 1, j, k + 1] + values[i + 1, j + 1, k]
        value = before // 3 + stored[i, j, k]
        values[i + 1, j + 1, k + 1] = (value + 2**15) % 2**16 - 2**15
    return values[1:, 1:, 1:]


def scan(name: str = "sub-01", affine=LAS, region: str = "left putamen") -> ViewerScan:
    """Noise in a ball, a smooth ramp, and a bright spot in the patient's right half."""
    rng = np.random.default_rng(0)
    index = np.indices(SHAPE)
    centre = (np.array(SHAPE) - 1) / 2
    mask = (((index.T - centre) / (0.42 * np.array(SHAPE))) ** 2).sum(-1).T < 1
    noise = np.where(mask, 30 * rng.standard_normal(SHAPE), 0).astype(np.float32)
    spot = np.zeros(SHAPE, np.float32)
    right = affine[0, 0] * (index[0] - centre[0]) > 0
    spot[mask & right] = 80
    ramp = (1000.0 * index[0]).astype(np.float32)
    labels = np.where(mask & right, 12, 0).astype(np.int32)
    return ViewerScan(
        name,
        affine,
        mask,
        [
            ViewerMap(
                "spot", "Spot", spot, "ppb", 1.0, [(0.0, 100.0)], look="The right half.", before="noise"
            ),
            ViewerMap("noise", "Noise", noise, "ppb", 0.5, [(-100.0, 100.0)], sigma="sd"),
            ViewerMap("sd", "SD of noise", np.abs(noise), "ppb", 0.5, [(0.0, 100.0)]),
            ViewerMap(
                "left", "Rest", spot - noise + 2, "ppb", 0.5, [(0.0, 100.0)], difference=("spot", "noise")
            ),
            ViewerMap("ramp", "Ramp", ramp, "a.u.", 10.0, [(0.0, 50_000.0)], masked=False),
        ],
        {"brain mask": mask, "right half": mask & right},
        labels,
        {12: region},
        nuclei=(12,),
    )


def page_of(path, *scans: ViewerScan):
    figure = figures.three_planes(np.ones((4, 5, 6)), np.eye(4), title="T", unit="ppm")
    panel = Panel.of_figure("Twin", "Look.", figure, alt="twin", in_viewer=True)
    return write_report(path, SubjectReport("T", "01", panels=[panel], viewer=encode(scans)))


def test_blocks_decode_to_the_maps():
    of = scan()
    viewer = encode([of])
    (described,) = json.loads(viewer.description)["scans"]
    blocks = dict(viewer.blocks)
    assert set(blocks) == {
        one["block"]
        for one in (*described["maps"], described["masks"], described["regions"])
        if "block" in one
    }
    affine = np.array(described["affine"])
    orientation = nib.io_orientation(LAS)
    turned = np.moveaxis(np.indices(SHAPE), 0, -1)
    for one, source in zip(described["maps"], of.maps, strict=True):
        if "difference" in one:
            continue
        steps = decode(blocks[one["block"]], described["shape"], predicted=one["predicted"])
        # Every voxel of the page lies where its affine puts it, and has the value of the map there.
        corner = np.linalg.inv(LAS) @ affine @ [0, 0, 0, 1]
        flat = nib.apply_orientation(source.values, orientation)
        at = nib.apply_orientation(turned, orientation)
        offset = next(zip(*np.where((at == np.rint(corner[:3])).all(-1)), strict=True))
        cut = flat[tuple(slice(o, o + n) for o, n in zip(offset, described["shape"], strict=True))]
        np.testing.assert_allclose(steps * one["step"], cut, atol=one["step"] / 2 + 1e-4)
    assert {one.get("predicted", True) for one in described["maps"]} == {True, False}
    assert nib.aff2axcodes(affine) == ("R", "A", "S")


def test_fine_grids_are_thinned_by_means():
    viewer = encode([scan()], most_voxels=10_000)
    (described,) = json.loads(viewer.description)["scans"]
    assert described["thinned"] == 2
    assert np.prod(described["shape"]) <= 10_000
    assert described["voxel_mm"] == [4.0, 4.0, 4.0]
    ramp = described["maps"][4]
    steps = decode(dict(viewer.blocks)[ramp["block"]], described["shape"], predicted=ramp["predicted"])
    index = (np.linalg.inv(LAS) @ np.array(described["affine"]) @ [0, 0, 0, 1])[0]
    assert steps[0, 0, 0] * 10 == pytest.approx(1000 * index)


def test_a_difference_of_maps_is_made_in_the_page():
    of = scan()
    spot, noise = of.maps[0].values, of.maps[1].values
    made = ViewerMap("made", "Made", spot - noise - 7, "ppb", 1.0, [(0.0, 1.0)], difference=("spot", "noise"))
    other = ViewerMap("other", "Other", spot + noise, "ppb", 1.0, [(0.0, 1.0)], difference=("spot", "noise"))
    viewer = encode([ViewerScan("s", LAS, of.mask, [*of.maps[:2], made, other], of.masks)])
    (described,) = json.loads(viewer.description)["scans"]
    *_, derived, stored = described["maps"]
    assert (derived["difference"], derived["offset"]) == (["spot", "noise"], -7)
    assert "block" not in derived
    assert "difference" not in stored
    assert stored["block"] in dict(viewer.blocks)


def test_a_large_page_is_rounded_more_coarsely():
    of = scan()
    fine = ViewerMap("fine", "Fine", of.maps[1].values, "ppb", 0.01, [(0.0, 1.0)], fine=True)
    coarse = ViewerMap("coarse", "Coarse", of.maps[1].values, "ppb", 0.01, [(0.0, 1.0)])
    both = [ViewerScan("s", LAS, of.mask, [fine, coarse])]
    whole = encode(both)
    smaller = encode(both, most_bytes=whole.size_bytes - 1)
    assert smaller.size_bytes < whole.size_bytes
    assert [one["step"] for one in json.loads(smaller.description)["scans"][0]["maps"]] == [0.01, 0.02]


def test_equal_scans_give_equal_content_and_names_no_markup():
    assert encode([scan()]) == encode([scan()])
    viewer = encode([scan(ATTACK, region=ATTACK)])
    assert "<" not in viewer.description
    (described,) = json.loads(viewer.description)["scans"]
    assert described["name"] == ATTACK
    assert described["regions"]["names"] == ["", ATTACK]
    assert described["regions"]["nuclei"] == [1]


def test_page_runs_the_scripts_of_the_package_alone(tmp_path):
    page = Page(page_of(tmp_path / "page.html", scan(ATTACK, region=ATTACK)).read_text())
    assert not page.open
    run = [attributes for tag, attributes in page.tags if tag == "script" and "type" not in attributes]
    assert run == [{}] * len(VIEWER_SCRIPTS)
    for name in VIEWER_SCRIPTS:
        assert script(name) in page.texts
        assert "</" not in script(name)
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert policy.count("sha256-") == len(VIEWER_SCRIPTS)
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy.partition("script-src")[2]


def test_a_map_is_scrolled_read_and_switched_in_chromium(tmp_path):
    path = page_of(tmp_path / "page.html", scan())
    with opened(path) as page:
        page.wait_for_selector("[data-loaded]")
        root = page.locator("#viewer-root")
        axial = root.locator("canvas").nth(2)
        before = int(axial.get_attribute("data-slice"))
        axial.hover()
        page.mouse.wheel(0, -100)
        page.wait_for_function(
            f"document.querySelectorAll('.viewer-planes canvas')[2].dataset.slice == {before + 1}"
        )
        # The picture: bright at its left, where the patient's right is.
        halves = page.evaluate(
            """() => {
              const canvas = document.querySelectorAll(".viewer-planes canvas")[2];
              const pen = canvas.getContext("2d");
              const row = Math.round(canvas.height * 0.3);
              const shade = (x) => pen.getImageData(Math.round(canvas.width * x), row, 1, 1).data[0];
              return [shade(0.35), shade(0.65)];
            }"""
        )
        assert halves[0] == pytest.approx(0.8 * 255, abs=8)
        assert halves[1] < 20
        # A value: that of the map at the voxel that the page names.
        box = axial.bounding_box()
        axial.click(position={"x": 0.4 * box["width"], "y": 0.6 * box["height"]})
        place = root.locator(".viewer-place")
        # The page is drawn in the next frame; the region may be that of the place before, too.
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.wait_for_function("document.querySelector('.viewer-place').dataset.region == 'left putamen'")
        assert "left putamen" in place.text_content()
        said = place.text_content().split(" · ")[-1].removesuffix(" mm").split(", ")
        mm = [float(text[2:]) * (1 if text[0] in "RAS" else -1) for text in said]
        voxel = tuple(np.rint(np.linalg.inv(LAS) @ [*mm, 1])[:3].astype(int))
        noise = scan().maps[1].values[voxel]
        shown = root.locator("td[data-value=noise]").text_content().replace("−", "-")
        value, sigma = shown.removesuffix(" ppb").split(" ± ")
        assert float(value) == pytest.approx(noise, abs=0.26)
        assert float(sigma) == pytest.approx(abs(noise), abs=0.26)
        assert root.locator("td[data-value=spot]").text_content() == "80 ppb"
        rest = root.locator("td[data-value=left]").text_content().replace("−", "-").removesuffix(" ppb")
        assert float(rest) == pytest.approx(80 - noise + 2, abs=0.26)
        # Before and after.
        assert root.get_attribute("data-shown") == "spot"
        root.locator("[data-control=toggle]").click()
        page.wait_for_selector("#viewer-root[data-shown=noise]")
        page.keyboard.press("Tab")
        root.locator(".viewer-stage").focus()
        page.keyboard.press("b")
        page.wait_for_selector("#viewer-root[data-shown=spot]")


def shades(page, plane: int) -> list[int]:
    """All red values of a plane."""
    return page.evaluate(
        """(number) => {
          const canvas = document.querySelectorAll(".viewer-planes canvas")[number];
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return Array.from(data.filter((_, i) => i % 4 === 0));
        }""",
        plane,
    )


@pytest.mark.slow
def test_keys_window_overlay_zoom_and_reset(tmp_path):
    path = page_of(tmp_path / "page.html", scan())
    with opened(path) as page:
        page.wait_for_selector("[data-loaded]")
        root = page.locator("#viewer-root")
        stage = root.locator(".viewer-stage")
        axial = root.locator("canvas").nth(2)
        voxel = lambda: [int(v) for v in root.locator(".viewer-place").get_attribute("data-voxel").split(",")]  # noqa: E731
        start = voxel()
        stage.focus()
        page.keyboard.press("ArrowLeft")  # to the patient's right
        page.keyboard.press("ArrowUp")  # to the front
        page.keyboard.press("PageUp")  # to the head
        page.wait_for_timeout(100)
        assert voxel() == [start[0] + 1, start[1] + 1, start[2] + 1]
        # Right button: sideways widens the window, down raises the level.
        low, high = (root.locator(f"[data-control={end}]") for end in ("low", "high"))
        box = axial.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + 100, y)
        page.mouse.up(button="right")
        page.wait_for_timeout(100)
        assert float(high.input_value()) - float(low.input_value()) == pytest.approx(150)
        assert voxel() == [start[0] + 1, start[1] + 1, start[2] + 1], "the crosshair stays"
        high.fill("80")
        high.press("Enter")
        page.wait_for_timeout(100)
        assert max(shades(page, 2)) == 255
        # Overlays.
        plain = shades(page, 2)
        for overlay in ("outlines:nuclei", "outlines:regions", "regions", "mask:1", "map:noise"):
            root.locator("[data-control=overlay]").select_option(overlay)
            page.wait_for_timeout(100)
            strong = shades(page, 2)
            assert strong != plain, overlay
            if overlay.startswith("outlines:"):  # a line, which covers no region
                changed = np.mean(np.array(strong) != np.array(plain))
                assert 0 < changed < 0.1, overlay
        root.locator("[data-control=opacity]").fill("0")
        page.wait_for_timeout(100)
        assert shades(page, 2) == plain
        stage.focus()
        page.keyboard.press("r")
        page.wait_for_timeout(100)
        assert (low.input_value(), high.input_value()) == ("0", "100")
        assert voxel() == start
        page.keyboard.press("5")
        page.wait_for_selector("#viewer-root[data-shown=ramp]")
        # Drag moves the crosshair; zoom keeps its voxel.
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 40, y + 30, steps=4)
        page.mouse.up()
        page.wait_for_timeout(100)
        moved = voxel()
        assert moved[0] > start[0]
        assert moved[1] < start[1]
        page.keyboard.press("+")
        page.wait_for_timeout(100)
        assert voxel() == moved


@pytest.mark.slow
def test_scans_of_other_grids_are_compared_at_the_same_part(tmp_path):
    other = scan("sub-02", affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    path = page_of(tmp_path / "page.html", scan(), other)
    with opened(path) as page:
        page.wait_for_selector("[data-loaded='sub-01']")
        root = page.locator("#viewer-root")
        root.locator("[data-control=other]").select_option("1:spot")
        root.locator("[data-control=toggle]").click()
        page.wait_for_selector("[data-loaded='sub-02']")
        assert root.locator("[data-control=scan]").input_value() == "1"
        picture = np.array(shades(page, 2))
        root.locator("[data-control=toggle]").click()
        page.wait_for_function("document.querySelector('[data-control=scan]').value == '0'")
        page.wait_for_timeout(100)
        assert np.mean(np.array(shades(page, 2)) == picture) > 0.98, "both have the right half at the left"


@pytest.mark.slow
@pytest.mark.parametrize("why", ["no scripts", "old browser"])
def test_static_figures_stand_in_for_the_viewer(why, tmp_path):
    path = page_of(tmp_path / "page.html", scan())
    before = "delete window.DecompressionStream" if why == "old browser" else ""
    with opened(path, scripts=why != "no scripts", before=before) as page:
        assert page.locator("img[alt=twin]").is_visible()
        text = page.locator("#viewer-root").text_content()
        assert "figures below show the same maps" in text


@pytest.mark.slow
def test_figures_are_for_print_where_the_viewer_runs(tmp_path):
    path = page_of(tmp_path / "page.html", scan())
    with opened(path) as page:
        page.wait_for_selector("[data-loaded]")
        figure, viewer = page.locator("img[alt=twin]"), page.locator("#viewer")
        assert not figure.is_visible()
        page.locator("[data-control=figures]").click()
        assert figure.is_visible()
        page.locator("[data-control=figures]").click()
        page.emulate_media(media="print")
        assert figure.is_visible()
        assert not viewer.is_visible()


@pytest.mark.slow
def test_names_of_a_scan_never_run(tmp_path):
    path = page_of(tmp_path / "page.html", scan(ATTACK, region=ATTACK), scan("other"))
    with opened(path) as page:
        page.wait_for_selector("[data-loaded]")
        box = page.locator(".viewer-planes canvas").nth(2).bounding_box()
        page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_function("document.querySelector('.viewer-place').textContent.includes('alert')")
        assert page.locator("#viewer img").count() == 0
