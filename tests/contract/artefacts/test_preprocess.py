"""Pictures become the same image everywhere, or a refusal that names the file."""

from __future__ import annotations

import io
import runpy
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.properties import examples

from devit_contract.artefacts.manifest import Preprocess, check_image
from devit_contract.artefacts.preprocess import decode_image, fit_image, load_image, picture_size
from devit_contract.errors import InputError

PICTURES = Path(__file__).parents[2] / "data" / "pictures"
MADE = runpy.run_path(str(PICTURES / "make_pictures.py"))
SCENE: npt.NDArray[np.uint8] = MADE["scene"]()
SPECS: dict[str, Preprocess] = MADE["SPECS"]
FILES = sorted(path.name for path in PICTURES.iterdir() if path.suffix in (".png", ".jpg"))

GRAY = Preprocess(height=28, width=28, colour="gray")
RGB = Preprocess(height=24, width=32, colour="rgb")


def picture(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int, *, data: bytes = b"") -> bytes:
    """A PNG of one bit a pixel that declares a size, whatever follows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_gray_picture_of_the_right_size_comes_back_identical(tmp_path: Path) -> None:
    pixels = picture(28, 28, 1)
    (tmp_path / "p.png").write_bytes(encoded(pixels))
    found = load_image(tmp_path / "p.png", GRAY)
    np.testing.assert_array_equal(found, pixels[..., np.newaxis])
    check_image(found, GRAY)


def test_a_colour_picture_of_the_right_size_comes_back_identical() -> None:
    np.testing.assert_array_equal(decode_image(encoded(picture(24, 32)), RGB, "p"), picture(24, 32))


def test_gray_and_colour_are_made_of_each_other() -> None:
    gray = picture(24, 32, 1)
    np.testing.assert_array_equal(decode_image(encoded(gray), RGB, "p"), np.repeat(gray[..., np.newaxis], 3, axis=2))
    white = np.full((28, 28, 3), 255, np.uint8)
    assert (decode_image(encoded(white), GRAY, "p") == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
def test_every_format_that_commands_list_is_read(kind: str) -> None:
    assert decode_image(encoded(picture(40, 50), kind), RGB, "p").shape == (24, 32, 3)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_shrinking_with_antialias_averages_and_without_it_samples(interpolation: str) -> None:
    """A board of single pixels shrunk fourfold is plain gray only where every pixel counts."""
    board = (np.indices((112, 112)).sum(axis=0) % 2 * 255).astype(np.uint8)
    spec = Preprocess(height=28, width=28, colour="gray", interpolation=interpolation)
    smooth = decode_image(encoded(board), spec, "p")
    plain = Preprocess(height=28, width=28, colour="gray", interpolation=interpolation, antialias=False)
    sampled = decode_image(encoded(board), plain, "p")
    assert smooth.shape == sampled.shape == (28, 28, 1)
    if interpolation == "nearest":
        assert set(np.unique(sampled)) <= {0, 255}
    else:
        assert np.abs(smooth.astype(int) - 127).max() <= 3
    if interpolation == "bicubic":
        assert (smooth != sampled).any()


def test_the_crop_is_the_middle_of_the_shorter_side_scaled() -> None:
    """48 x 96 with the shorter side at 24 is 24 x 48, of which the middle 24 x 32 stay: columns 16 to 79."""
    columns = np.repeat(np.arange(96, dtype=np.uint8)[np.newaxis] * 2, 48, axis=0)
    spec = Preprocess(height=24, width=32, colour="gray", resize_to=32)
    wide = decode_image(encoded(columns), spec, "p")[..., 0]
    assert wide.shape == (24, 32)
    # Scaled to 32 x 64: one column is 1.5 old ones, the crop starts at column 16, which is old column 24.
    np.testing.assert_allclose(wide[12], (24.25 + 1.5 * np.arange(32)) * 2, atol=1.5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_scaling_keeps_a_gradient_in_place(interpolation: str, antialias: bool) -> None:
    """A half-pixel shift between training and serving would cost accuracy that nobody finds again."""
    gradient = np.repeat(np.arange(112, dtype=np.uint8)[np.newaxis], 112, axis=0)
    spec = Preprocess(height=28, width=28, colour="gray", interpolation=interpolation, antialias=antialias)
    found = decode_image(encoded(gradient), spec, "p")[14, 2:-2, 0].astype(float)
    np.testing.assert_allclose(found, 4.0 * np.arange(2, 26) + 1.5, atol=1.01)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no picture format that is known"),
        (b"just some text\n", "no picture format that is known"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "no picture format that is known"),
        (encoded(picture(28, 28))[:200], "truncated"),
        (encoded(picture(28, 28), "JPEG")[:-100], "truncated"),
        (png_header(28, 28, data=b"nonsense"), ""),
        (png_header(100_000, 100_000), "pixels"),
        (png_header(9_000, 8_000), "expected at most 64000000 pixels, found 9000 x 8000"),
    ],
    ids=["empty", "text", "eps", "png-cut", "jpeg-cut", "png-garbage", "bomb", "large"],
)
def test_what_cannot_be_decoded_is_refused_in_one_line_that_names_it(tmp_path: Path, content: bytes, said: str) -> None:
    """EPS is a format that Pillow hands to Ghostscript: bytes from strangers must not get there."""
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_image(path, GRAY)
    assert str(error.value).startswith(f"{path}: expected ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.png: cannot be read: No such file"):
        load_image(tmp_path / "absent.png", GRAY)


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    """Sixty megabytes of zero bits compress to nothing; decoding and scaling them would take seconds and gigabytes."""
    start_s = time.process_time()
    for width, height in ((8_000, 8_001), (1, 60_000_000)):
        spec = Preprocess(height=28, width=28, colour="gray", resize_to=32)
        with pytest.raises(InputError, match="expected at most 64000000 pixels"):
            decode_image(png_header(width, height), spec, "p")
    assert time.process_time() - start_s < 1.0


@examples(1.5)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 2000),
)
def test_a_damaged_picture_is_an_image_or_a_refusal_never_a_crash(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    """Agents decode what clients send; one bad picture must not end them all."""
    content = bytearray(encoded(picture(20, 24), kind))
    for position, value in changes:
        content[position % len(content)] = value
    for candidate in (content, content[:cut]):
        for spec in (GRAY, Preprocess(height=24, width=32, colour="rgb", resize_to=32)):
            with suppress(InputError):
                check_image(decode_image(bytes(candidate), spec, "p"), spec)


@pytest.mark.parametrize(
    "image", [np.zeros((28, 28, 3), np.uint8), np.zeros((28, 28), np.uint8), np.zeros((28, 28, 1), np.float32)]
)
def test_an_image_that_the_graph_does_not_take_is_refused(image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \(28, 28, 1\), found"):
        check_image(image, GRAY)


@given(
    place=st.integers(0, 4000),
    rubbish=st.binary(min_size=1, max_size=8),
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP"]),
)
@examples(3)
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(place: int, rubbish: bytes, kind: str) -> None:
    """Pictures come from strangers: whatever else escaped would end the edge agent that decodes them."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    place %= len(content)
    content[place : place + len(rubbish)] = rubbish
    spec = Preprocess(height=6, width=8, colour="gray")
    with suppress(InputError):
        assert decode_image(bytes(content), spec, "picture").shape == (6, 8, 1)


def test_a_tiff_is_no_format_that_is_taken() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "TIFF")
    with pytest.raises(InputError, match="no picture format that is known"):
        decode_image(buffer.getvalue(), Preprocess(height=6, width=8, colour="gray"), "picture")


@pytest.mark.parametrize("name", FILES)
def test_the_golden_pictures_give_the_golden_bytes(name: str) -> None:
    """PNG exactly; builds of libjpeg may differ by one level."""
    with np.load(PICTURES / "golden.npz") as golden:
        for spec_name, spec in SPECS.items():
            found, expected = load_image(PICTURES / name, spec), golden[f"{name}/{spec_name}"]
            tolerance = 1 if name.endswith(".jpg") else 0
            assert np.abs(found.astype(int) - expected).max() <= tolerance, spec_name


def test_the_golden_pictures_are_all_of_the_folder() -> None:
    assert sorted(MADE["pictures"]()) == FILES
    with np.load(PICTURES / "golden.npz") as golden:
        assert set(golden) == {f"{name}/{spec}" for name in FILES for spec in SPECS}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_width_is_scaled_first_whatever_pillow_would_do(interpolation: str) -> None:
    """Pillow rounds to eight bits between its two passes, and 13 begins with the side that shrinks more."""
    image, resampling = Image.fromarray(MADE["portrait"]()), Image.Resampling[interpolation.upper()]
    spec = Preprocess(height=24, width=24, colour="rgb", interpolation=interpolation)
    found = fit_image(np.asarray(image), spec)
    width_first = image.resize((24, image.height), resampling).resize((24, 24), resampling)
    height_first = image.resize((image.width, 24), resampling).resize((24, 24), resampling)
    np.testing.assert_array_equal(found, np.asarray(width_first))
    share = (found != np.asarray(height_first)).mean()
    print(f"{interpolation}: the other order changes {share:.0%} of the values of a portrait")
    assert share > 0.05


@examples(2)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_two_calls_give_the_bytes_of_pillow_12s_one(
    size: tuple[int, int], wanted: tuple[int, int], interpolation: str
) -> None:
    if int(PIL.__version__.partition(".")[0]) > 12:
        pytest.skip("this Pillow scales in another order")
    image = Image.fromarray(picture(*size))
    spec = Preprocess(height=wanted[0], width=wanted[1], colour="rgb", interpolation=interpolation)
    expected = image.resize((spec.width, spec.height), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(fit_image(np.asarray(image), spec), np.asarray(expected))


@pytest.mark.parametrize("name", ["rgb.png", "rgb-16-bit.png"])
def test_of_16_bits_of_a_colour_the_upper_eight_count(name: str) -> None:
    np.testing.assert_array_equal(load_image(PICTURES / name, SPECS["as-it-is"]), SCENE)


def test_of_16_bits_of_gray_the_upper_eight_count() -> None:
    """Pillow alone clips at 255: all but the darkest pixels would be white."""
    np.testing.assert_array_equal(load_image(PICTURES / "gray-16-bit.png", SPECS["gray"]), SCENE[..., :1])


def test_under_transparency_lies_the_colour_that_the_file_gives() -> None:
    expected = SCENE.copy()
    expected[10:20, 20:30] = (10, 200, 30)
    np.testing.assert_array_equal(load_image(PICTURES / "rgba.png", SPECS["as-it-is"]), expected)


def test_cmyk_keeps_its_colours() -> None:
    """JPEG holds CMYK inverted: a reader that misses that shows the negative."""
    found = load_image(PICTURES / "cmyk.jpg", SPECS["as-it-is"])
    assert np.abs(found.astype(int) - SCENE).mean() < 10


@pytest.mark.parametrize("name", ["orientation-6.jpg", "orientation-3.jpg"])
def test_a_picture_taken_with_a_turned_camera_is_upright(name: str) -> None:
    found = load_image(PICTURES / name, SPECS["as-it-is"])
    assert np.abs(found.astype(int) - SCENE).mean() < 10
    assert picture_size((PICTURES / name).read_bytes(), name) == (50, 37)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (0, SCENE),
        (1, SCENE),
        (2, SCENE[:, ::-1]),
        (3, SCENE[::-1, ::-1]),
        (4, SCENE[::-1]),
        (5, SCENE.transpose(1, 0, 2)),
        (6, np.rot90(SCENE, -1)),
        (7, SCENE[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(SCENE, 1)),
        (9, SCENE),
    ],
)
def test_each_orientation_turns_the_pixels_as_exif_says(
    kind: str, orientation: int, turned: npt.NDArray[np.uint8]
) -> None:
    """What the tag means, in numpy's words; compared with the same file without a tag."""
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, tagged = io.BytesIO(), io.BytesIO()
    Image.fromarray(SCENE).save(plain, kind, **options)
    Image.fromarray(SCENE).save(tagged, kind, exif=MADE["oriented"](orientation), **options)
    spec = Preprocess(height=turned.shape[0], width=turned.shape[1], colour="rgb")
    found = decode_image(tagged.getvalue(), spec, "p").astype(int)
    if kind == "JPEG":
        assert np.abs(found - turned).mean() < 10
        assert (
            np.abs(found.mean((0, 1)) - decode_image(plain.getvalue(), SPECS["as-it-is"], "p").mean((0, 1))).max() < 1
        )
    else:
        np.testing.assert_array_equal(found, turned)
    assert picture_size(tagged.getvalue(), "p") == (turned.shape[1], turned.shape[0])


@given(rubbish=st.binary(max_size=60))
@examples(2)
def test_a_damaged_orientation_counts_as_none(rubbish: bytes) -> None:
    """One of ImageNet's pictures has such a tag: training must not end there."""
    file = io.BytesIO()
    # Little-endian, one entry, the tag of the orientation, and then whatever comes.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01" + rubbish
    Image.fromarray(SCENE).save(file, "JPEG", exif=exif)
    plain = io.BytesIO()
    Image.fromarray(SCENE).save(plain, "JPEG")
    expected = decode_image(plain.getvalue(), SPECS["as-it-is"], "p")
    np.testing.assert_array_equal(decode_image(file.getvalue(), SPECS["as-it-is"], "p"), expected)
    assert picture_size(file.getvalue(), "p") == (50, 37)


def test_a_size_is_asked_of_a_picture_alone() -> None:
    with pytest.raises(InputError, match="p: expected a picture such as PNG or JPEG, found no picture format"):
        picture_size(b"text", "p")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pixels_of_a_camera_become_what_a_picture_file_of_them_becomes(spec: Preprocess) -> None:
    found = fit_image(SCENE, spec)
    np.testing.assert_array_equal(found, decode_image(encoded(SCENE), spec, "p"))
    check_image(found, spec)


def test_what_fits_already_is_a_copy_that_outlives_the_cameras_buffer() -> None:
    buffer = SCENE.copy()
    found = fit_image(buffer, SPECS["as-it-is"])
    buffer[:] = 0
    np.testing.assert_array_equal(found, SCENE)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_pixels_that_no_image_can_be_made_of_are_refused(pixels: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"pixels: expected uint8 \(h, w, 3\), found"):
        fit_image(pixels, GRAY)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_published_models_see_the_pixels_that_they_were_measured_with(interpolation: str) -> None:
    """Torchvision's transforms, which timm's evaluation is made of: the same pixels, also where halves are rounded."""
    pytest.importorskip("torch", reason="the reference of published models; devices run without")
    from devit_decompose.models.timm_models import import_torchvision

    transforms = import_torchvision().transforms
    mode = transforms.InterpolationMode(interpolation)
    draw = np.random.default_rng(3)
    sizes = [(37, 50), (50, 37), (64, 64), (45, 33), (24, 100), (27, 27), (301, 200), (200, 301), (29, 28)]
    for height, width in sizes:
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for resize_to in (24, 27, 32):
            spec = Preprocess(height=24, width=24, colour="rgb", interpolation=interpolation, resize_to=resize_to)
            chain = transforms.Compose([transforms.Resize(resize_to, mode), transforms.CenterCrop((24, 24))])
            expected = np.asarray(chain(Image.fromarray(pixels)))
            np.testing.assert_array_equal(decode_image(encoded(pixels), spec, "p"), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torchs_own_resize_agrees_within_one_level(interpolation: str) -> None:
    """Written apart from Pillow's, with the same definition of antialiasing.

    Pixels of 64 to 191, since Pillow clips what overshoots between its two passes.
    """
    torch = pytest.importorskip("torch", reason="an independent resize; devices run without")
    for height, width in ((37, 50), (96, 41), (12, 15), (200, 150)):
        pixels = np.random.default_rng(4).integers(64, 192, (height, width, 3), dtype=np.uint8)
        spec = Preprocess(height=24, width=32, colour="rgb", interpolation=interpolation)
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()  # (1, C, h, w)
        scaled = torch.nn.functional.interpolate(
            planes, size=(24, 32), mode=interpolation, align_corners=False, antialias=True
        )
        expected = scaled[0].permute(1, 2, 0).round().numpy()  # (H, W, C)
        assert np.abs(fit_image(pixels, spec) - expected).max() <= 1


def test_training_sees_the_bytes_that_a_device_sees(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs it; devices run without")
    from devit_decompose.data.dataset import load_dataset
    from devit_decompose.recipe.schema import DataRecipe

    for part in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for name in FILES:
                (folder / name).write_bytes((PICTURES / name).read_bytes())
    recipe = DataRecipe(
        name="golden",
        folder=str(tmp_path),
        size=(24, 24),
        classes=2,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        validation_images=4,
        sample_images=2,
        source="folder",
        resize_to=27,
    )
    found = load_dataset(recipe).test.images[:]
    expected = np.stack([load_image(PICTURES / name, SPECS["cropped"]) for name in FILES * 2])
    np.testing.assert_array_equal(found, expected)
