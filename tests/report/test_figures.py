"""Figures: the right planes on the right side, in the right size, window and unit."""

from __future__ import annotations

import base64
import io
import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from chisep.report import figures

SHAPE, VOXEL_MM = (6, 8, 10), (1.0, 2.0, 3.0)
ORIENTATIONS = [
    (order, flips)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


@pytest.fixture
def volume() -> np.ndarray:
    """Another value in every voxel, axes pointing right, anterior and superior."""
    return np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)


@pytest.fixture
def affine() -> np.ndarray:
    return np.diag([*VOXEL_MM, 1.0])


@pytest.fixture
def mask() -> np.ndarray:
    inside = np.zeros(SHAPE, dtype=bool)
    inside[2:5, 2:7, 3:8] = True
    return inside


def reordered(volume: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]):
    """The same volume with reordered and flipped voxel axes, and its affine."""
    turned, matrix = volume.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            turned = np.flip(turned, axis)
            matrix[:3, 3] += matrix[:3, axis] * (turned.shape[axis] - 1)
            matrix[:3, axis] *= -1
    return turned, matrix


def images(figure) -> list:
    """Planes and colour bars in reading order."""
    return list(figure.axes[0].images)


def picture(figure, number: int) -> np.ndarray:
    return np.ma.getdata(images(figure)[number].get_array())


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def place(image) -> tuple[float, float, float, float]:
    """Left, right, lower and upper edge in inches from the upper left corner."""
    return image.get_extent()


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


def test_planes_are_radiological(volume, affine):
    figure = figures.three_planes(volume, affine, title="T", unit="ppm", position=(1, 2, 3))
    sagittal, coronal, axial = (picture(figure, number) for number in range(3))
    for row, column in itertools.product(range(3), repeat=2):
        assert sagittal[row, column] == volume[1, -1 - column, -1 - row]
        assert coronal[row, column] == volume[-1 - column, 2, -1 - row]
        assert axial[row, column] == volume[-1 - column, -1 - row, 3]
    names = [text for text in figure.texts if text.get_text() in {"A", "P", "R", "L"}]
    assert [text.get_text() for text in names] == ["A", "P", "R", "L", "R", "L"]
    for plane, (first, last) in zip(images(figure), zip(names[::2], names[1::2], strict=True), strict=False):
        left, right, lower, _ = place(plane)
        assert_allclose([first.get_position()[0], last.get_position()[0]], [left, right])
        assert first.get_position()[1] > lower, "below the plane"


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_storage_order_does_not_change_the_picture(volume, affine, mask, order, flips):
    wanted = figures.three_planes(volume, affine, title="T", unit="ppm", mask=mask)
    turned, matrix = reordered(volume, affine, order, flips)
    turned_mask, _ = reordered(mask, affine, order, flips)
    found = figures.three_planes(turned, matrix, title="T", unit="ppm", mask=turned_mask)
    for number in range(3):
        assert_array_equal(picture(found, number), picture(wanted, number))
        assert_allclose(place(images(found)[number]), place(images(wanted)[number]))


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[::5])
def test_position_is_a_voxel_of_the_file(affine, order, flips):
    volume = np.zeros(SHAPE, dtype=np.float32)
    volume[5, 1, 7] = 1.0  # right, posterior, superior
    turned, matrix = reordered(volume, affine, order, flips)
    position = [int(p) for p in np.argwhere(turned)[0]]
    figure = figures.three_planes(turned, matrix, title="T", unit="ppm", position=position)
    wanted = ((2, 6), (2, 0), (6, 0))  # row and column
    for number, pixel in enumerate(wanted):
        assert [tuple(found) for found in np.argwhere(picture(figure, number))] == [pixel]


def test_oblique_volume_is_shown_along_its_own_axes(volume, affine):
    angle = np.deg2rad(20)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight = figures.three_planes(volume, affine, title="T", unit="ppm")
    oblique = figures.three_planes(volume, tilt @ affine, title="T", unit="ppm")
    for number in range(3):
        assert_array_equal(picture(oblique, number), picture(straight, number))
        assert_allclose(place(images(oblique)[number]), place(images(straight)[number]))


def test_a_millimetre_is_as_long_in_all_planes_and_directions(volume, affine):
    figure = figures.three_planes(volume, affine, title="T", unit="ppm")
    scales = []
    for image, size_mm in zip(images(figure), ((16, 30), (6, 30), (6, 16)), strict=False):
        left, right, lower, upper = place(image)
        scales.append(np.divide((right - left, lower - upper), size_mm))
    assert_allclose(scales, scales[0][0], rtol=1e-6)
    corners = figure.axes[0].transData.transform([(0, 0), (1, 1)])
    assert_allclose(np.abs(corners[1] - corners[0]), figure.dpi)


def test_mask_is_framed_with_a_margin_and_cut_through_its_centre(affine):
    shape = (40, 40, 40)
    volume = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    mask = np.zeros(shape, dtype=bool)
    mask[20:23, 16:19, 12:15] = True
    figure = figures.three_planes(volume, np.eye(4), title="T", unit="ppm", mask=mask)
    assert picture(figure, 2).shape == (19, 19)  # three voxels and 8 mm around
    assert picture(figure, 2)[9, 9] == volume[21, 17, 13]


@pytest.mark.parametrize("shape", [(24, 20, 5), (5, 20, 24), (20, 1, 24), (1, 1, 1)])
def test_thin_volumes_can_be_drawn(shape):
    volume = np.random.default_rng(1).normal(size=shape)
    inside = np.ones(shape, dtype=bool)
    thin = figures.three_planes(
        volume, np.diag([1.0, 1.0, 4.0, 1.0]), title="T", unit="1/s", mask=inside, overlay=inside
    )
    stack = figures.echoes(np.stack([volume, volume]), np.eye(4), (0.005, 0.011), title="T", unit="rad")
    for figure in (thin, stack):
        assert figures.data_uri(figure).startswith("data:image/webp;base64,")


def test_empty_maps_can_be_drawn(affine):
    empty, nowhere = np.zeros(SHAPE, dtype=np.float32), np.zeros(SHAPE, dtype=bool)
    for figure in (
        figures.source_maps(empty, empty, empty, affine, nowhere),
        figures.mask_outline(empty, nowhere, affine),
        figures.histogram({"map": empty}, nowhere, unit="ppb", window=(0.0, 100.0)),
    ):
        assert len(decoded(figures.data_uri(figure))) > 1000


def test_source_maps_are_in_ppb_with_fixed_windows(affine, mask):
    pos, neg = np.full(SHAPE, 0.08), np.full(SHAPE, 0.03)
    figure = figures.source_maps(pos, neg, pos - neg, affine, mask)
    assert [image.get_clim() for image in images(figure)[::4]] == [(0, 100), (0, 100), (-100, 100)]
    for number, value in ((0, 80), (4, 30), (8, 50)):
        shown = picture(figure, number)
        assert_allclose(shown[np.isfinite(shown)], value, rtol=1e-6)
        assert np.isnan(shown).any()  # around the mask
    assert texts(figure).count("ppb") == 3


@pytest.mark.parametrize(
    ("window", "labels", "factor"),
    [
        ((-100.0, 100.0), [-100, -75, -50, -25, 0, 25, 50, 75, 100], ""),
        ((0.0, 2e-7), [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2], "1e−7"),
    ],
)
def test_colour_bar_shows_the_window_from_top_to_bottom(volume, affine, window, labels, factor):
    figure = figures.three_planes(volume, affine, title="T", unit="1/s", window=window)
    bar = images(figure)[3]
    assert_allclose(np.ravel(bar.get_array())[[0, -1]], window[::-1])
    left, right, lower, upper = place(bar)
    ticks = {
        float(text.get_text().replace("−", "-")): text.get_position()
        for text in figure.texts
        if text.get_va() == "center_baseline"
    }
    assert_allclose(list(ticks), labels)
    (lines,) = figure.axes[0].collections
    ends = np.array([segment[1] for segment in lines.get_segments()])
    values = np.array(labels) * float(factor.replace("−", "-") or 1)
    wanted = lower + (upper - lower) * (values - window[0]) / (window[1] - window[0])
    assert_allclose(ends[:, 1], wanted)
    assert_allclose([y for _, y in ticks.values()], wanted)
    assert all(x > end > right > left for (x, _), end in zip(ticks.values(), ends[:, 0], strict=True))
    assert "1/s" in texts(figure)
    assert not factor or factor in texts(figure)


def test_what_is_outside_the_mask_is_background(volume, affine, mask):
    for figure, number in (
        (figures.three_planes(volume, affine, title="T", unit="ppm", mask=mask, position=(3, 4, 5)), 2),
        (
            figures.echoes(
                volume[None], affine, [0.005], title="T", unit="rad", mask=mask, position=(3, 4, 5)
            ),
            0,
        ),
    ):
        wanted = np.where(mask, volume, np.nan)[:, :, 5]
        assert_array_equal(picture(figure, number), wanted[::-1, ::-1].T)


def test_comparison_shows_the_signed_difference(affine, mask):
    predicted, truth = np.full(SHAPE, 0.05), np.full(SHAPE, 0.07)
    figure = figures.comparison(predicted, truth, affine, mask, title="χ")
    assert images(figure)[8].get_clim() == (-50, 50)
    assert_allclose([np.nanmean(picture(figure, number)) for number in (0, 4, 8)], [50, 70, -20], rtol=1e-6)


def test_window_follows_the_values_in_the_mask(volume, affine, mask):
    bright = np.where(mask, 2.0, 1000.0)
    signed = np.where(mask, -3.0, 1000.0)
    for values, window in ((bright, (0.0, 2.0)), (signed, (-3.0, 3.0))):
        figure = figures.three_planes(values, affine, title="T", unit="ppm", mask=mask)
        assert_allclose(images(figure)[0].get_clim(), window)


def test_outline_lies_on_the_border_of_the_mask(volume, affine, mask):
    figure = figures.mask_outline(volume, mask, affine)
    _, *outlines = figure.axes[0].collections  # the first are the ticks of the colour bar
    assert len(outlines) == 3
    for image, outline, width_mm, low, high in zip(
        images(figure),
        outlines,
        (16, 6, 6),
        ((2, 9), (1, 9), (1, 4)),
        ((12, 24), (4, 24), (4, 14)),
        strict=False,
    ):
        left, right, lower, upper = place(image)
        scale = (right - left) / width_mm
        points = np.concatenate([path.vertices for path in outline.get_paths()])
        points_mm = np.stack([points[:, 0] - left, lower - points[:, 1]], axis=1) / scale
        assert_allclose(points_mm.min(0), low)
        assert_allclose(points_mm.max(0), high)
        assert upper < points[:, 1].min()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 5), (7, 5)])
def test_echoes_share_one_window(affine, count, columns):
    volumes = np.stack([np.full(SHAPE, 1.0 / (1 + echo)) for echo in range(count)])
    te_s = [0.005 + 0.006 * echo for echo in range(count)]
    figure = figures.echoes(volumes, affine, te_s, title="Magnitude", unit="a.u.")
    panels = images(figure)[:count]
    assert [text for text in texts(figure) if text.startswith("TE")] == [
        f"TE {1e3 * te:.1f} ms" for te in te_s
    ]
    assert len({image.get_clim() for image in panels}) == 1
    assert len({round(place(image)[0], 6) for image in panels}) == columns
    assert [picture(figure, echo).max() for echo in range(count)] == [volume.max() for volume in volumes]


def test_echo_times_must_match_the_volumes(volume, affine):
    with pytest.raises(ValueError, match="zip"):
        figures.echoes(np.stack([volume, volume]), affine, [0.005], title="T", unit="a.u.")


def test_histogram_counts_the_mask_only(mask):
    values = np.where(mask, 10.5, 80.0)
    values[2, 2, 3] = 500.0
    axes = figures.histogram({"χ": values}, mask, unit="ppb", window=(0.0, 100.0), bins=100).axes[0]
    counts = axes.patches[0].get_data().values
    beyond = 100 / mask.sum()
    assert_allclose(counts[10], 100 - beyond)
    assert_allclose(counts.sum(), 100 - beyond)
    assert axes.get_legend().get_texts()[0].get_text() == f"χ ({beyond:.1f} % beyond)"


def test_convergence_leaves_out_what_a_logarithm_cannot_show():
    axes = figures.convergence([1.0, 0.1, 0.0, 0.01], tolerance=1e-3).axes[0]
    assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 4])
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("change", [[], [0.0], [0.5]])
def test_convergence_of_hardly_any_iteration_can_be_drawn(change):
    uri = figures.data_uri(figures.convergence(change, tolerance=1e-3))
    assert ET.fromstring(decoded(uri)).tag.endswith("svg")


def test_equal_figures_give_equal_text(volume, affine, mask):
    def both() -> list[str]:
        image = figures.planes([figures.Row("R2′ = R2* − R2 of χ", volume, "1/s")], affine, mask=mask)
        chart = figures.histogram({"χ′": volume}, mask, unit="1/s", window=(0.0, 50.0))
        return [figures.data_uri(figure) for figure in (image, chart)]

    first, second = both(), both()
    assert first == second
    assert [uri.split(";")[0] for uri in first] == ["data:image/webp", "data:image/svg+xml"]
    assert decoded(first[0]).startswith(b"RIFF")
    assert b"Matplotlib" not in decoded(first[0])
    assert b"<dc:date>" not in decoded(first[1])


def test_axial_planes_fill_lines_of_the_given_length(affine):
    volumes = np.random.default_rng(0).random((6, *SHAPE)).astype(np.float32)
    titles = [f"iteration {number}" for number in (1, 2, 3, 5, 7, 10)]
    figure = figures.axial_planes(volumes, titles, affine, title="", unit="", window=(0.0, 1.0), columns=3)
    *planes, bar = images(figure)
    captions = [text for text in figure.texts if text.get_text() in titles]
    assert [text.get_text() for text in captions] == titles
    for number, (plane, caption) in enumerate(zip(planes, captions, strict=True)):
        assert_array_equal(picture(figure, number), volumes[number, ::-1, ::-1, SHAPE[2] // 2].T)
        left, right, _, upper = place(plane)
        assert caption.get_position()[0] == pytest.approx((left + right) / 2)
        assert caption.get_position()[1] < upper, "above its plane"
    lefts = [place(plane)[0] for plane in planes]
    assert_allclose(lefts[:3], lefts[3:])
    assert lefts[0] < lefts[1] < lefts[2] < place(bar)[0]
    assert place(planes[0])[2] < place(planes[3])[3], "the first line is above the second"
    with pytest.raises(ValueError, match="zip"):
        figures.axial_planes(volumes, titles[:5], affine, title="", unit="")


def test_curves_are_drawn_with_their_subjects_and_range():
    lines = {"mean": ([1, 2, 3], [30.0, 20.0, 15.0]), "other": ([1, 2], [9.0, 8.0])}
    thin = {"mean": [([1, 2, 3], [31.0, 21.0, 16.0])]}
    first, second = figures.curves(
        [
            figures.Curves("left", "iteration", "NRMSE (%)", lines, thin),
            figures.Curves("right", "step", "α", {"α": ([0.5, 1.5], [4.0, 0.7])}, band=(0.67, 0.75, "end")),
        ]
    ).axes
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["mean", "other"]
    assert_array_equal(first.lines[0].get_ydata(), [31, 21, 16])
    assert_array_equal(first.lines[1].get_ydata(), [30, 20, 15])
    assert first.lines[0].get_color() == first.lines[1].get_color() != first.lines[2].get_color()
    assert all(float(tick).is_integer() for tick in first.get_xticks())
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["α", "end"]
    assert (first.get_title(), first.get_ylabel(), second.get_xlabel()) == ("left", "NRMSE (%)", "step")


def test_bars_stand_beside_their_group_from_top_to_bottom():
    lengths = {"label": [3.0, 2.0, np.nan], "truth": [4.0, 5.0, 6.0]}
    panels = [figures.Bars(title, ["a", "b", "c"], lengths, {"truth": [0.5] * 3}) for title in "xyz"]
    figure = figures.bars(panels)
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["", "", ""]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "first group on top"
    for number, bar in enumerate(axes.containers[-1]):
        assert bar.get_width() == lengths["truth"][number]
        assert abs(bar.get_y() + bar.get_height() / 2 - number) < 0.4
    assert len(figure.legends) == 1
    assert figures.png(figure) == figures.png(figures.bars(panels))


def test_lesions_are_drawn_with_their_lines_on_equal_axes():
    points = {"hemorrhage": ([0.0, 400.0], [20.0, 300.0]), "calcification": ([100.0], [-30.0])}
    fits = {"hemorrhage": (0.7, 20.0), "calcification": (0.5, -80.0)}
    panels = [figures.Lesions(f"method {n}", points, fits) for n in range(5)]
    panels.append(figures.Lesions("none", {}, {}))
    figure = figures.lesion_lines(panels)
    assert len(figure.axes) == 6
    for axes in figure.axes:
        assert axes.get_xlim() == pytest.approx((0, 420))
        assert axes.get_ylim() == pytest.approx((-30, 420))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "hemorrhage: 0.70",
        "calcification: 0.50",
    ]
    assert_allclose(axes.lines[1].get_ydata(), [20, 20 + 0.7 * 420])
    assert_allclose(axes.collections[0].get_offsets(), [[0, 20], [400, 300]])
    assert not figure.axes[-1].collections


def test_regions_are_coloured_over_the_second_row_only(volume, affine, mask):
    labels = np.where(mask, 7, 0)
    labels[2:5, 2:7, 3:5] = 1234
    figure = figures.region_planes(volume, labels, affine, mask, {7: "putamen"})
    assert {"putamen", "region 1234"} <= set(texts(figure)), "every colour is named"
    assert texts(figure).count("ppb") == 1, "colours of regions are no values"
    rows, coloured = images(figure)[:7], images(figure)[7:]
    assert [place(image) for image in coloured] == [place(image) for image in rows[4:7]]
    assert place(rows[0])[3] < place(rows[4])[3], "the map alone is above"
    sagittal = coloured[0].get_array()
    shown = np.ma.getdata(sagittal)[~np.ma.getmaskarray(sagittal)]
    assert len(np.unique(shown)) == 2, "one colour a region"
    assert shown.size == mask[3].sum()


def test_png_has_the_pixels_of_the_figure(affine):
    volume = np.zeros(SHAPE, dtype=np.float32)
    volume[:, :, SHAPE[2] // 2 :] = 1.0
    figure = figures.three_planes(volume, affine, title="T", unit="ppm", window=(0.0, 1.0))
    with Image.open(io.BytesIO(figures.png(figure))) as image:
        pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    assert_allclose((width, height), 90 * figure.get_size_inches(), atol=1)
    left, right, lower, upper = place(images(figure)[0])
    column = round(90 * (left + right) / 2)
    for inch, grey in ((0.75 * upper + 0.25 * lower, 255), (0.25 * upper + 0.75 * lower, 0)):
        assert_array_equal(pixels[round(90 * inch), column], [grey] * 3)
    assert_array_equal(pixels[2, 2], [0x0E, 0x11, 0x16])
