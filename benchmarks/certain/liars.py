"""Have devices lie to the node's watch, and measure after how many frames they are named; print the table of docs.

python benchmarks/certain/liars.py --models examples/fashion-mnist [--data DIR] [--features FILE.npz]
                                          # measures (ten minutes of two cores; a FILE spares the models' part of it)
python benchmarks/certain/liars.py        # prints the table of what is kept; --json: as JSON

The features are those of the test images, the calibration that of the validation images; the watch is the node's own.
"""

# No annotation is a string here: msgspec reads them, also where runpy runs this file.
import argparse
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageFilter

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.calibration import calibrate
from devit_contract.artefacts.head import FusionHead
from devit_contract.service.journal import Log
from devit_fusion.events import Events
from devit_fusion.frames.liars.watch import Watch

RESULTS = Path(__file__).parent / "results" / "liars.json"
TRIALS, FRAMES, WARM_UP = 400, 50, 10
"""400 times 50 frames with the fault are 20,000; before each, the watch sees ten clean ones."""
CLEAN, SHIFTED = 200_000, 20_000
Features = dict[int, Float32Array]
Fault = Callable[["Cell", int, int, int], Float32Array]
"""Given the device, the image and the one before, says what the device answers."""


class FaultRow(msgspec.Struct, frozen=True):
    """One kind of fault."""

    frames: int
    noticed: int
    """Of the trials, of which each has 50 frames."""
    trials: int
    median_frames: float | None
    """Until it was noticed, in those trials in which it was."""
    worst_frames: int | None
    wrong_names: int
    """Trials in which a device that was right was suspected."""
    kinds: dict[str, int]


class CleanRow(msgspec.Struct, frozen=True):
    """Frames without a fault."""

    frames: int
    named: int
    """How often a device was suspected."""
    disagreements: int
    """How often the devices were said to disagree."""
    novel: float
    """Share of the frames with a novelty above 0.99."""


class Results(msgspec.Struct, frozen=True):
    """``results/liars.json``."""

    faults: dict[str, FaultRow]
    clean: dict[str, CleanRow]


class Cell:
    """The features of all devices, and a watch."""

    def __init__(self, head: FusionHead, features: Mapping[str, Float32Array]) -> None:
        """Calibrate on the validation part."""
        self.head, self.rng = head, np.random.default_rng(0)
        self.usual = calibrate(head, features["validation"]).usual
        self.features = features
        self.test = features["test"]
        ends = np.cumsum((0, *head.dims))
        self.parts = [slice(begin, end) for begin, end in pairwise(ends)]
        self.devices = range(len(head.dims))
        covariance = head.statistics.covariance
        self.roots = [
            np.linalg.cholesky(covariance[part, part] + 1e-6 * np.eye(part.stop - part.start)) for part in self.parts
        ]
        self.order = self.rng.permutation(head.dims[0])

    def watch(self) -> Watch:
        """Begin to watch."""
        assert self.usual is not None
        names = {device: f"device{device}" for device in self.devices}
        return Watch(self.head, self.usual, names, Events(Log("liars")))

    def split(self, row: Float32Array) -> Features:
        """Give each device its part."""
        return {device: row[part] for device, part in enumerate(self.parts)}

    def images(self, count: int) -> Iterator[int]:
        """Draw images: all of them shuffled, again and again."""
        while count > 0:
            for image in self.rng.permutation(len(self.test))[:count]:
                yield int(image)
            count -= len(self.test)


def another(cell: Cell, device: int, image: int, before: int) -> Float32Array:
    """Answer with the feature of another image."""
    return cell.test[cell.rng.integers(len(cell.test)), cell.parts[device]]


def noise(cell: Cell, device: int, image: int, before: int) -> Float32Array:
    """Answer with noise that has the device's mean and covariance."""
    drawn = cell.roots[device] @ cell.rng.normal(size=cell.head.dims[device])
    return np.asarray(cell.head.statistics.mean[cell.parts[device]] + drawn, np.float32)


def changed(name: str) -> Fault:
    """Answer with the feature of the changed image."""
    return lambda cell, device, image, before: cell.features[name][image, cell.parts[device]]


FAULTS: dict[str, Fault] = {
    "another image's": another,
    "the previous image's": lambda cell, device, image, before: cell.test[before, cell.parts[device]],
    "noise of the same mean and covariance": noise,
    "a constant: those of one image": lambda cell, device, image, before: cell.test[0, cell.parts[device]],
    "a constant: the mean": lambda cell, device, image, before: cell.head.statistics.mean[cell.parts[device]].astype(
        np.float32
    ),
    "a dirty lens: half is covered": changed("half"),
    "a dirty lens: blurred, radius 2 of 28 pixels": changed("blur2"),
    "a dirty lens: 40 % haze": changed("haze"),
    "a wrong engine: another submodel's": lambda cell, device, image, before: cell.test[
        image, cell.parts[(device + 1) % len(cell.parts)]
    ],
    "garbled: its numbers in another order": lambda cell, device, image, before: cell.test[image, cell.parts[device]][
        cell.order
    ],
    "weak: blurred, radius 1": changed("blur1"),
    "weak: a smudge on an eighth": changed("smudge"),
    "weak: 1.5 times too long": lambda cell, device, image, before: (
        cell.test[image, cell.parts[device]] * np.float32(1.5)
    ),
}


def lie(cell: Cell, fault: Fault, *, per_frame: int) -> FaultRow:
    """Let each device lie in turn; frames hold so many devices, the liar among them."""
    noticed: list[int] = []
    kinds: Counter[str] = Counter()
    wrong = 0
    for trial in range(TRIALS):
        liar, watch, before, first, names = trial % len(cell.parts), cell.watch(), 0, 0, set[int]()
        for number, image in enumerate(cell.images(WARM_UP + FRAMES), start=1 - WARM_UP):
            said = cell.split(cell.test[image])
            if number > 0:
                said[liar] = fault(cell, liar, image, before)
            others = cell.rng.permutation([device for device in cell.devices if device != liar])
            asked = {liar, *others[: per_frame - 1].tolist()}
            watch.look({device: said[device] for device in asked})
            watch.catch_up()
            names |= set(watch.suspects)
            before = image
            if liar in watch.suspects and not first:
                first = number
                kinds[watch.suspects[liar]] += 1
        noticed += [first] if first else []
        wrong += bool(names - {liar})
    return _row(noticed, wrong, kinds)


def lie_together(cell: Cell, *, is_same: bool) -> FaultRow:
    """Let two devices say another image's features, one image for both or one for each."""
    noticed: list[int] = []
    kinds: Counter[str] = Counter()
    wrong = 0
    for trial in range(TRIALS):
        liars, watch, first, names = (trial % 4, (trial + 1 + trial // 4 % 3) % 4), cell.watch(), 0, set[int]()
        for number, image in enumerate(cell.images(WARM_UP + FRAMES), start=1 - WARM_UP):
            said = cell.split(cell.test[image])
            if number > 0:
                false = [cell.split(cell.test[cell.rng.integers(len(cell.test))]) for _ in liars]
                said |= {liar: false[0 if is_same else place][liar] for place, liar in enumerate(liars)}
            watch.look(said)
            watch.catch_up()
            names |= set(watch.suspects)
            if not first and (watch.suspects or watch.is_unclear):
                first = number
                kinds["named" if watch.suspects else "the devices disagree"] += 1
        noticed += [first] if first else []
        wrong += bool(names - set(liars))
    return _row(noticed, wrong, kinds)


def clean(cell: Cell, features: Float32Array, frames: int, *, per_frame: int) -> CleanRow:
    """Let nobody lie; after each alarm, begin anew."""
    watch, named, disagreements, novel = cell.watch(), 0, 0, 0
    for image in cell.images(frames):
        said = cell.split(features[image])
        if per_frame < len(said):
            said = {device: said[device] for device in cell.rng.permutation(len(said))[:per_frame].tolist()}
        novelty = watch.look(said)
        watch.catch_up()
        novel += novelty is not None and novelty > 0.99
        if watch.suspects or watch.is_unclear:
            named += bool(watch.suspects)
            disagreements += watch.is_unclear
            watch = cell.watch()
    return CleanRow(frames, named, disagreements, round(novel / frames, 4))


def measure(cell: Cell) -> Results:
    """Measure all rows."""
    devices = len(cell.parts)
    faults = {name: lie(cell, fault, per_frame=devices) for name, fault in FAULTS.items()}
    faults["another image's, two devices a frame"] = lie(cell, another, per_frame=2)
    faults["two liars, an image each"] = lie_together(cell, is_same=False)
    faults["two liars, the same image"] = lie_together(cell, is_same=True)
    rows = {"clean": clean(cell, cell.test, CLEAN, per_frame=devices)}
    rows["clean, two devices a frame"] = clean(cell, cell.test, CLEAN, per_frame=2)
    rows["JPEG, quality 75"] = clean(cell, cell.features["jpeg75"], CLEAN // 2, per_frame=devices)
    for name in ("bright-32", "gain0.7", "bright+32", "haze", "half", "blur2", "smudge"):
        rows[f"all devices: {name}"] = clean(cell, cell.features[name], SHIFTED, per_frame=devices)
    return Results(faults, rows)


def table(results: Results) -> list[str]:
    """Lines of the two tables."""
    lines = [
        "| what one device answers | noticed | median frames | worst | another named | told as |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results.faults.items():
        shown = ["", ""] if row.median_frames is None else [f"{row.median_frames:g}", str(row.worst_frames)]
        kinds = ", ".join(kind for kind, count in sorted(row.kinds.items()) if count >= row.trials / 20)
        lines.append(f"| {name} | {row.noticed} of {row.trials} | {' | '.join(shown)} | {row.wrong_names} | {kinds} |")
    lines += [
        "",
        "| what all devices see | frames | a device named | devices disagree | novelty > 0.99 |",
        "|---|---|---|---|---|",
    ]
    for name, clean_row in results.clean.items():
        counts = f"{clean_row.frames:,} | {clean_row.named} | {clean_row.disagreements}"
        lines.append(f"| {name} | {counts} | {100 * clean_row.novel:.1f} % |")
    return lines


def kept() -> Results:
    """Read ``results/liars.json``."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def _row(noticed: list[int], wrong: int, kinds: Counter[str]) -> FaultRow:
    return FaultRow(
        frames=TRIALS * FRAMES,
        noticed=len(noticed),
        trials=TRIALS,
        median_frames=statistics.median(noticed) if noticed else None,
        worst_frames=max(noticed, default=None),
        wrong_names=wrong,
        kinds=dict(kinds),
    )


def _features(models: Path, data: Path | None) -> dict[str, Float32Array]:
    """Run the submodels on the validation images, the test images, and changed ones."""
    from devit_decompose.evaluation.evaluate import data_of, load_cell
    from devit_decompose.models_folder.subset_accuracy import joined_features

    cell, dataset = load_cell(models), data_of(models, data)
    images = np.asarray(dataset.test.images)
    sets = {"validation": np.asarray(dataset.validation.images), "test": images}
    sets |= {name: change(images) for name, change in CHANGES.items()}
    return {name: joined_features(cell.submodels, pictures) for name, pictures in sets.items()}


def _each(change: Callable[[Image.Image], Image.Image]) -> Callable[[UInt8Array], UInt8Array]:
    def all_of(images: UInt8Array) -> UInt8Array:
        changed = [np.asarray(change(Image.fromarray(image.squeeze()))) for image in images]
        return np.stack(changed).reshape(images.shape)

    return all_of


def _jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


def _scaled(gain: float, offset: float) -> Callable[[UInt8Array], UInt8Array]:
    return lambda images: np.clip(images * gain + offset, 0, 255).astype(np.uint8)


def _half(images: UInt8Array) -> UInt8Array:
    return np.concatenate([np.zeros_like(images[:, : images.shape[1] // 2]), images[:, images.shape[1] // 2 :]], axis=1)


def _smudge(images: UInt8Array) -> UInt8Array:
    side = images.shape[1]
    y, x = np.mgrid[:side, : images.shape[2]]
    smudged = images.copy()
    smudged[:, (y - 0.4 * side) ** 2 + (x - 0.6 * side) ** 2 < (0.2 * side) ** 2] = 128
    return smudged


CHANGES: dict[str, Callable[[UInt8Array], UInt8Array]] = {
    "jpeg75": _each(_jpeg),
    "bright+32": _scaled(1.0, 32.0),
    "bright-32": _scaled(1.0, -32.0),
    "gain0.7": _scaled(0.7, 0.0),
    "haze": _scaled(0.6, 64.0),
    "half": _half,
    "smudge": _smudge,
    "blur1": _each(lambda picture: picture.filter(ImageFilter.GaussianBlur(1))),
    "blur2": _each(lambda picture: picture.filter(ImageFilter.GaussianBlur(2))),
}


def main() -> None:
    """Measure, or print what is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", type=Path, help="models folder to measure; without it, print what is kept")
    parser.add_argument("--data", type=Path, help="folder with the data set")
    parser.add_argument("--features", type=Path, help="file that keeps the features between runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.models is not None:
        if options.features is not None and options.features.exists():
            features = dict(np.load(options.features))
        else:
            features = _features(options.models, options.data)
            if options.features is not None:
                np.savez(options.features, **features)  # type: ignore[arg-type]  # its stub takes no names
        results = measure(Cell(FusionHead.load(options.models / "fusion.safetensors"), features))
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    results = kept()
    shown = msgspec.json.encode(results).decode() if options.json else "\n".join(table(results))
    print(shown)  # noqa: T201


if __name__ == "__main__":
    main()
