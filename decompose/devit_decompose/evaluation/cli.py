"""``devit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.choices import Order, Policy
from devit_contract.errors import InputError
from devit_contract.extras import require
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_next, print_table, progress_bar
from devit_decompose.evaluation.rows import accuracies_by_size, percent

if TYPE_CHECKING:
    from devit_decompose.evaluation.evaluate import Evaluation
    from devit_decompose.evaluation.policy_figures import Choice, PolicyFigures

evaluate_app = Application(no_args_is_help=True)
_MANY_DEVICES = 4
"""With more devices, only the best and the worst subset of each size are printed."""
_MANY_CLASSES = 20
"""If there are more classes, only this many are printed, the worst."""


@evaluate_app.command()
def evaluate(
    models: Annotated[Path, typer.Argument(help="Models folder from devit decompose or devit assemble.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the data set (default: that of training).")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODELS", help="Another models folder: test whether one is significantly better."),
    ] = None,
    policy: Annotated[
        Policy | None, typer.Option(metavar="NAME", help="Measure a policy: all, certain, single or replica.")
    ] = None,
    flips: Annotated[
        float, typer.Option(metavar="SHARE", help="Of certain answers: how many may differ from those of all devices.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="How sure that promise is.")] = 0.95,
    stages: Annotated[
        str, typer.Option(metavar="N-N-N", help="Devices asked in each stage (default: 1-1 and the rest).")
    ] = "",
    order: Annotated[
        Order, typer.Option(metavar="NAME", help="Who is asked first: rotating, best, or cost (by MACs).")
    ] = "rotating",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Calibrate certain answers and keep images for INT8, both from the validation images, into MODELS.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; accuracies in percent, flips as a share.")
    ] = False,
) -> None:
    """Measure trained models on their test images: all subsets of devices, every class.

    With --policy, measure instead how many devices a policy asks, and what that costs and loses.
    """
    require("decompose")
    if sum((against is not None, policy is not None, calibrate)) > 1:
        raise InputError("give one of --against MODELS, --policy NAME and --calibrate")
    if policy != "certain" and (flips, confidence, stages, order) != (0.01, 0.95, "", "rotating"):
        raise InputError("--flips, --confidence, --stages and --order belong to --policy certain: add it")
    if calibrate:
        _calibrate(models, data, as_json=as_json)
    elif policy is not None:
        from devit_decompose.evaluation.policy_figures import Choice

        _evaluate_policy(models, data, Choice(policy, flips, confidence, stages, order), as_json=as_json)
    else:
        _evaluate(models, data, against, as_json=as_json)


def _evaluate(models: Path, data: Path | None, against: Path | None, *, as_json: bool) -> None:
    from devit_decompose.evaluation.evaluate import evaluate

    with progress_bar(quiet=as_json) as progress:
        found = evaluate(models, data=data, against=against, progress=progress)
    _warn(is_stored=found.is_stored_test_set)
    if as_json:
        print_json(found)
    else:
        _show_evaluation(found)
        print_next("devit", "export", models, "--out", "bundle")


def _evaluate_policy(models: Path, data: Path | None, choice: Choice, *, as_json: bool) -> None:
    from devit_decompose.evaluation.policy_figures import evaluate_policies

    with progress_bar(quiet=as_json) as progress:
        (found,) = evaluate_policies(models, [choice], data=data, progress=progress)
    _warn(is_stored=found.is_stored_test_set)
    if found.certain is not None and set(found.certain.thresholds.values()) == {None}:
        typer.echo(
            "warning: no answer of some devices is certain: more validation images or a weaker promise would help",
            err=True,
        )
    if as_json:
        print_json(found)
    else:
        _show_policy(found)


def _warn(*, is_stored: bool) -> None:
    if not is_stored:
        typer.echo(
            "warning: these are not the test images of decomposition.json: the accuracies are of other data", err=True
        )


def _calibrate(models: Path, data: Path | None, *, as_json: bool) -> None:
    from devit_decompose.evaluation.calibrate import calibrate_models

    with progress_bar(quiet=as_json) as progress:
        found = calibrate_models(models, data=data, progress=progress)
    if not found.is_stored_validation_set:
        typer.echo(
            "warning: these are not the validation images of decomposition.json: promises hold for images like these",
            err=True,
        )
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{models / found.file}: from {found.validation_images:,} validation images of {found.name}")
        print_next("devit", "export", models, "--out", "bundle")


def _show_policy(found: PolicyFigures) -> None:
    title = f"{found.name} on {found.test_images:,} test images of {found.data}: policy {found.policy}"
    if found.certain is not None:
        how = found.certain
        title += f" {how.stages} ({how.order}), at most {how.promised_flips:.2%} flips by {how.confidence:.2%}"
    rows = [
        ["devices asked", f"{found.devices_asked:.2f}", str(found.devices)],
        ["stages", f"{found.stages:.2f}", "1"],
        ["million MACs per answer", f"{found.million_macs:.2f}", f"{found.million_macs_all:.2f}"],
        ["flips", f"{found.flips:.2%}", ""],
        ["flips, worst first device", f"{found.flips_of_worst_start:.2%}", ""],
        ["accuracy", percent(found.accuracy), percent(found.accuracy_all)],
        ["only this right", str(found.only_policy_right), str(found.only_all_right)],
        ["p, exact McNemar test, two-sided", f"{found.p_value:.3g}", ""],
    ]
    print_table(title, ["what", found.policy, "all devices"], rows, numbers=(1, 2))
    rows = [[str(count), f"{share:.2%}"] for count, share in found.shares_asked.items()]
    print_table("", ["devices asked", "answers"], rows, numbers=(0, 1))


def _show_evaluation(found: Evaluation) -> None:
    teacher_macs = "" if found.teacher_macs is None else f"{found.teacher_macs / 1e6:,.1f}"
    devices, cost = len(found.submodel_macs), sum(found.submodel_macs) / 1e6
    rows = [
        ["baseline model", percent(found.teacher_accuracy), teacher_macs],
        [f"fused, {devices} devices", percent(found.fused_accuracy), f"{cost:,.1f}"],
    ]
    title = f"{found.name} on {found.test_images:,} test images of {found.data}"
    print_table(title, ["model", "accuracy", "MMACs"], rows, numbers=(1, 2))
    if devices > _MANY_DEVICES:
        masks = {sum(1 << int(device) for device in key.split(",")): one for key, one in found.subsets.items()}
        print_table("devices present", ["devices", "worst", "best"], accuracies_by_size(masks), numbers=(0, 1, 2))
    else:
        ways = (found.subsets, found.subsets_with_zeros, found.subsets_with_mean)
        rows = [[key, *(percent(way[key]) for way in ways)] for key in found.subsets]
        header = ["devices present", "missing predicted", "zeros", "mean"]
        print_table("filling of missing features", header, rows, numbers=(1, 2, 3))
    rows = []
    for subset in found.class_subsets:
        accuracies = (subset.fused_accuracy, subset.without_device, subset.device_alone)
        rows.append([str(subset.device), str(len(subset.classes)), *map(percent, accuracies)])
    header = ["device", "classes", "all devices", "without it", "it alone"]
    print_table("images of the classes that a device was first trained on", header, rows, numbers=(0, 1, 2, 3, 4))
    by_accuracy = sorted(found.classes, key=lambda one: 101.0 if one.fused_accuracy is None else one.fused_accuracy)
    classes, title = found.classes, "classes"
    if len(classes) > _MANY_CLASSES:
        classes, title = tuple(by_accuracy[:_MANY_CLASSES]), f"the {_MANY_CLASSES} worst of {len(classes)} classes"
    rows = [[one.name, str(one.images), percent(one.fused_accuracy), percent(one.teacher_accuracy)] for one in classes]
    print_table(title, ["class", "images", "fused", "teacher"], rows, numbers=(1, 2, 3))
    if found.comparison is not None:
        one = found.comparison
        rows = [
            [f"fused, {one.against}", percent(one.other_fused_accuracy)],
            ["only this cell right (b)", str(one.only_this_right)],
            ["only the other right (c)", str(one.only_other_right)],
            ["p, exact McNemar test, two-sided", f"{one.p_value:.3g}"],
        ]
        print_table("against another cell", ["what", "figure"], rows, numbers=(1,))
