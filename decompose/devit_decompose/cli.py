"""``devit decompose`` and ``devit assemble``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.extras import require
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import on_interrupt, print_json, print_next, print_table, progress_bar
from devit_decompose.evaluation.rows import accuracies_by_size

if TYPE_CHECKING:
    from devit_decompose.models_folder.assembly import Assembly
    from devit_decompose.models_folder.decomposition import Decomposition

app = Application(no_args_is_help=True)
assemble_app = Application(no_args_is_help=True)

_RESUME = "run the same command with --resume: it goes on after the last finished epoch"
Force = Annotated[bool, typer.Option("--force", help="Replace the finished models in --out.")]


@app.command()
def decompose(
    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. examples/fashion-mnist.toml.")],
    out: Annotated[Path, typer.Option(help="Folder to write the models to.")] = Path("models"),
    force: Force = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run from its last epoch.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe entry; may be repeated.")
    ] = None,
    teacher_cache: Annotated[
        Path | None,
        typer.Option(help="Folder that caches the teacher's answers to every augmented training image."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build every model, run one step on random data, print the costs, and stop."),
    ] = False,
) -> None:
    """Train N submodels and their fusion head from one large ViT.

    On several GPUs or machines: torchrun --nproc_per_node 2 -m devit_decompose RECIPE --out models
    """
    require("decompose")
    # NumPy is not loaded yet. Its BLAS would start a thread a core for the small systems of missing devices, in every
    # batch; on busy cores the joint stage took 2.6 times the CPU time. `threads` in the recipe is for torch.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from devit_decompose.recipe.reader import load_recipe

    loaded = load_recipe(recipe, tuple(changes or ()))
    if dry_run:
        from devit_decompose.dry_run import dry_run as run_dry

        with progress_bar() as progress:
            table = run_dry(loaded, progress)
        print_table(f"{loaded.name}: nothing trained (--dry-run)", *table, numbers=(1, 2, 3, 4))
        return
    from devit_contract.artefacts.files import refuse_finished
    from devit_decompose.models_folder.decomposition import FILE_NAME
    from devit_decompose.stages import decompose as run_stages

    refuse_finished(out, FILE_NAME, force=force)
    with on_interrupt(_RESUME), progress_bar() as progress:
        result = run_stages(loaded, out, resume=resume, progress=progress, teacher_cache=teacher_cache)
    if result is None:  # one of torchrun's other processes
        return
    teacher_cost = 0 if result.teacher is None else result.teacher.macs
    cost = sum(model.macs for model in result.submodels)
    whole = result.subsets[-1]  # of all devices
    rows = [
        ["teacher", "all classes", f"{result.teacher_test_accuracy:.2%}", f"{teacher_cost / 1e6:.1f}"],
        ["fused", f"{len(result.submodels)} devices", f"{whole.test_accuracy:.2%}", f"{cost / 1e6:.1f}"],
    ]
    print_table(f"{loaded.name}: models in {out}", ["model", "sees", "test accuracy", "MMACs"], rows, numbers=(2, 3))
    print_next("devit", "export", out, "--out", "bundle")


@assemble_app.command()
def assemble(
    models: Annotated[
        str, typer.Option(metavar="NAME,...", help="timm model names, vit_* or deit_*, one for each device.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with train/CLASS/ and test/CLASS/ or val/CLASS/.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the models to.")] = Path("models"),
    force: Force = False,
    weights: Annotated[
        str, typer.Option(metavar="FILE,...", help="A file for each model (default: timm downloads them).")
    ] = "",
    ridge: Annotated[
        str, typer.Option(metavar="auto|FLOAT", help="Strength of ridge regression; auto tries logistic too.")
    ] = "auto",
    validation_images: Annotated[
        int | None, typer.Option(metavar="N", help="How many training images to use for validation (default: a tenth).")
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="H,W", help="Input size in pixels for all backbones (default: their own).")
    ] = "",
    resize_to: Annotated[
        int, typer.Option(metavar="N", help="Shorter side in pixels before a centre crop; 0: resize without crop.")
    ] = 0,
    source: Annotated[
        str, typer.Option(help="Data source: folder, idx, pairs, imagenet, cifar100, flowers102 or stanford_cars.")
    ] = "folder",
    name: Annotated[str, typer.Option(help="Name of the cell (default: that of the data folder).")] = "",
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that decode image files.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that caches features (default: ~/.cache/devit/features).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Make a cell from pretrained timm backbones, by training the fusion head alone."""
    require("timm")
    from devit_contract.artefacts.files import refuse_finished
    from devit_decompose.assembly.assemble import Order, assemble
    from devit_decompose.assembly.features import default_cache
    from devit_decompose.models_folder.decomposition import FILE_NAME

    refuse_finished(out, FILE_NAME, force=force)
    order = Order(
        models=tuple(models.split(",")),
        data=data,
        source=source,
        name=name,
        weights=tuple(Path(path) for path in weights.split(",") if path),
        size=_size(size),
        resize_to=resize_to,
        ridge=None if ridge == "auto" else _number(ridge),
        validation_images=validation_images,
        workers=workers,
    )
    kept = f"run the same command again: {cache or default_cache()} keeps the features of every finished backbone"
    with on_interrupt(kept), progress_bar(quiet=as_json) as progress:
        decomposition, assembly = assemble(order, out, cache or default_cache(), progress)
    if as_json:
        print_json({"decomposition": decomposition, "assembly": assembly})
    else:
        _show_assembled(decomposition, assembly, out)
        print_next("devit", "export", out, "--out", "bundle")


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    try:
        height, width = (int(side) for side in text.split(","))
    except ValueError as err:
        raise typer.BadParameter(f"--size: expected H,W in pixels, e.g. 224,224, found {text!r}") from err
    return height, width


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise typer.BadParameter(f"--ridge: expected auto or a number, found {text!r}") from err


def _show_assembled(decomposition: Decomposition, assembly: Assembly, out: Path) -> None:
    costs = [record.macs / 1e6 for record in decomposition.submodels]
    rows = [
        [str(device), record.name, f"{record.probe_test_accuracy:.2%}", f"{cost:,.1f}"]
        for device, (record, cost) in enumerate(zip(assembly.backbones, costs, strict=True))
    ]
    print_table(
        f"{decomposition.name}: models in {out}", ["device", "backbone", "alone", "MMACs"], rows, numbers=(2, 3)
    )
    accuracies = {subset.mask: 100 * subset.test_accuracy for subset in decomposition.subsets}
    kept = assembly.heads[0]
    title = f"test accuracy, fused ({kept.method} regression, strength {kept.strength:.2g})"
    print_table(title, ["devices", "worst", "best"], accuracies_by_size(accuracies), numbers=(0, 1, 2))
