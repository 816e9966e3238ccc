"""``devit decompose``: what it takes and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.terminal import print_table, progress_bar

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def decompose(
    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. examples/fashion-mnist.toml.")],
    out: Annotated[Path, typer.Option(help="Folder to write the models to.")] = Path("models"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run from its last epoch.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe entry; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check recipe and data, print the costs, stop.")] = False,
) -> None:
    """Train N submodels and their fusion head from one large ViT."""
    from devit_decompose.recipe import load_recipe
    from devit_decompose.stages import decompose as run_stages
    from devit_decompose.stages import preview

    loaded = load_recipe(recipe, tuple(changes or ()))
    if dry_run:
        print_table(f"{loaded.name}: nothing trained (--dry-run)", *preview(loaded), numbers=(1, 2, 3))
        return
    with progress_bar() as progress:
        result = run_stages(loaded, out, resume=resume, progress=progress)
    rows = [["teacher", "all classes", f"{result.teacher_test_accuracy:.2%}", f"{result.teacher.macs / 1e6:.1f}"]]
    everyone = (1 << len(result.submodels)) - 1
    cost = sum(model.macs for model in result.submodels)
    for subset in result.subsets:
        if subset.mask == everyone:
            rows.append(
                ["fused", f"{len(result.submodels)} devices", f"{subset.test_accuracy:.2%}", f"{cost / 1e6:.1f}"]
            )
    print_table(f"{loaded.name}: models in {out}", ["model", "sees", "test accuracy", "MMACs"], rows, numbers=(2, 3))
