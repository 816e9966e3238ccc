"""Refuses recipes whose parts do not fit together, before any training."""

from __future__ import annotations

import msgspec

from devit_contract.errors import InputError
from devit_contract.extras import require
from devit_decompose.models.model import ModelConfig
from devit_decompose.recipe.schema import Recipe
from devit_decompose.recipe.training import RelationRecipe


def check_recipe(recipe: Recipe) -> None:
    """Check that what a recipe needs is installed, and that the shapes of teacher and students fit together.

    Raises:
        InputError: timm is needed and not installed, a depth does not divide, token counts differ under a relation
            loss, or a block is not there.
    """
    if recipe.uses_timm:
        require("timm")
    everything = tuple(range(recipe.data.class_count))
    teacher = recipe.teacher.config(recipe.data, everything)
    students = [
        (f"students.{index}", shape.config(recipe.data, everything)) for index, shape in enumerate(recipe.students)
    ]
    if recipe.shrink is not None:
        sources = students or [("teacher", teacher)]
        for key, config in sources:
            _check_divides("shrink.depth", recipe.shrink.depth, key, len(config.heads))
        students = [("shrink", _shortened(config, recipe.shrink.depth)) for _, config in sources]
    for key, config in students:
        if recipe.distil.used_relation is not None:
            _check_relation(recipe.distil.used_relation, key, config, teacher)


def _check_relation(relation: RelationRecipe, key: str, student: ModelConfig, teacher: ModelConfig) -> None:
    if student.tokens != teacher.tokens:
        raise InputError(
            f"{key}: expected as many tokens as the teacher's {teacher.tokens} for distil.relation, "
            f"found {student.tokens}: change the stem, or remove distil.relation"
        )
    _check_divides(f"{key}.depth", len(student.heads), "teacher", len(teacher.heads))
    for name, block, config in (
        ("student_block", relation.student_block, student),
        ("teacher_block", relation.teacher_block, teacher),
    ):
        if block is not None and not 0 <= block < len(config.heads):
            raise InputError(f"distil.relation.{name}: expected 0 to {len(config.heads) - 1}, found {block}")
    if relation.form == "heads":
        for owner, config in ((key, student), ("teacher", teacher)):
            for heads, width in zip(config.heads, config.head_widths, strict=True):
                if heads * width % relation.heads:
                    raise InputError(
                        f"distil.relation.heads: expected a divisor of the {heads * width} numbers in all heads of "
                        f"{owner}, found {relation.heads}"
                    )


def _check_divides(key: str, depth: int, owner: str, whole: int) -> None:
    if depth > whole or whole % depth:
        raise InputError(f"{key}: expected a divisor of the {whole} blocks of {owner}, found {depth}")


def _shortened(config: ModelConfig, depth: int) -> ModelConfig:
    return msgspec.structs.replace(
        config,
        heads=config.heads[:depth],
        head_widths=config.head_widths[:depth],
        softmax_scales=config.softmax_scales[:depth],
        neurons=config.neurons[:depth],
    )
