"""Every loss term against a small case that is worked out by hand, or written out in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from devit_decompose.models.model import QueryKeyValue
from devit_decompose.recipe.training import AnswerRecipe, RelationRecipe
from devit_decompose.training.losses import (
    answer_losses,
    devit_relation,
    hard_distillation,
    heads_relation,
    label_loss,
    relation_losses,
    soft_distillation,
    token_loss,
    total,
)


def softmax(row: list[float]) -> list[float]:
    top = [math.exp(value) for value in row]
    return [value / sum(top) for value in top]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def relation_by_hand(rows: list[list[float]], divisor: float) -> list[list[float]]:
    return [softmax([sum(a * b for a, b in zip(one, other, strict=True)) / divisor for other in rows]) for one in rows]


def random_rows(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_class_of_three_times_the_weight_counts_as_three_images() -> None:
    logits = random_rows(2, 4, seed=8)
    labels, weights = torch.tensor([2, 1]), torch.tensor([1.0, 1.0, 3.0, 1.0])
    found = label_loss(logits, labels, 0.0, weights)
    torch.testing.assert_close(found, label_loss(logits[[0, 0, 0, 1]], labels[[0, 0, 0, 1]], 0.0))
    labels_alone = AnswerRecipe(label_weight=1.0, teacher_weight=0.0)
    torch.testing.assert_close(answer_losses((logits,), None, labels, labels_alone, 0.0, weights)["labels"], found)


def test_soft_distillation_is_the_divergence_written_out() -> None:
    """Two classes, temperature 2: p = softmax([1, 0]), q = softmax([0, 0]), 4 * sum p log(p / q)."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    expected = 4 * divergence(softmax([1.0, 0.0]), [0.5, 0.5])
    assert soft_distillation(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    logits = random_rows(5, 7, seed=0)
    assert soft_distillation(logits, logits + 3.0, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_hard_distillation_takes_the_teachers_first_choice_for_the_label() -> None:
    """The teacher prefers class 1; the student gives it softmax([1, 3])[1]."""
    found = hard_distillation(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.1, 0.2]]))
    assert found.item() == pytest.approx(-math.log(softmax([1.0, 3.0])[1]), rel=1e-6)


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    """Smoothing 0.2 over two classes: 0.9 of the right one, 0.1 of the other."""
    p = softmax([1.0, 3.0])
    expected = -0.9 * math.log(p[1]) - 0.1 * math.log(p[0])
    assert label_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([1]), 0.2).item() == pytest.approx(expected, rel=1e-6)


def test_mixed_labels_count_by_their_shares() -> None:
    p = softmax([1.0, 3.0])
    expected = -0.75 * math.log(p[0]) - 0.25 * math.log(p[1])
    found = label_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.75, 0.25]]), 0.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_deits_class_head_learns_from_labels_and_its_distillation_head_from_the_teacher() -> None:
    by_class, by_distillation = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    teacher, labels = torch.tensor([[5.0, 0.0]]), torch.tensor([1])
    recipe = AnswerRecipe(label_weight=0.5, teacher_weight=0.25, target="hard")
    terms = answer_losses((by_class, by_distillation), teacher, labels, recipe, smoothing=0.0)
    assert terms["labels"].item() == pytest.approx(-0.5 * math.log(softmax([2.0, 0.0])[1]), rel=1e-6)
    assert terms["teacher"].item() == pytest.approx(-0.25 * math.log(softmax([0.0, 1.0])[0]), rel=1e-6)


def test_a_term_without_weight_is_not_computed() -> None:
    recipe = AnswerRecipe(label_weight=1.0, teacher_weight=0.0)
    assert set(answer_losses((torch.zeros(1, 2),), None, torch.tensor([0]), recipe, 0.0)) == {"labels"}


def test_devits_relation_is_the_divergence_of_all_rows_over_the_depth() -> None:
    """Two tokens; the student has one number a token, the teacher two; head widths 1 and 4, depth 3."""
    student = [[1.0], [2.0]]
    teacher = [[1.0, 0.0], [0.5, 1.0]]
    ours, theirs = relation_by_hand(student, 1.0), relation_by_hand(teacher, 2.0)
    expected = sum(divergence(p, q) for p, q in zip(theirs, ours, strict=True)) / 3
    found = devit_relation(torch.tensor([student]), torch.tensor([teacher]), (1, 4), depth=3)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_devits_relation_is_averaged_over_the_batch() -> None:
    student, teacher = random_rows(3, 4, 6, seed=1), random_rows(3, 4, 8, seed=2)
    alone = [devit_relation(student[i : i + 1], teacher[i : i + 1], (2, 4), depth=2).item() for i in range(3)]
    assert devit_relation(student, teacher, (2, 4), depth=2).item() == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_relation_of_heads_is_written_out_head_by_head() -> None:
    """Two parts of widths 1 (student) and 2 (teacher); rows scaled to length 1, temperature 0.5."""
    student = [[3.0, -1.0], [2.0, 4.0]]
    teacher = [[3.0, 4.0, 1.0, 0.0], [0.0, 2.0, 1.0, 1.0]]

    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in row))
        return [value / length for value in row]

    expected = 0.0
    for part in range(2):
        ours = relation_by_hand([unit(row[part : part + 1]) for row in student], 0.5)
        theirs = relation_by_hand([unit(row[2 * part : 2 * part + 2]) for row in teacher], 0.5)
        expected += sum(divergence(p, q) for p, q in zip(theirs, ours, strict=True))
    found = heads_relation(torch.tensor([student]), torch.tensor([teacher]), heads=2, temperature=0.5)
    assert found.item() == pytest.approx(expected / 4, rel=1e-5)  # two parts x two rows


def test_the_relation_of_heads_does_not_depend_on_the_length_of_rows() -> None:
    rows = random_rows(2, 5, 8, seed=3)
    assert heads_relation(7.0 * rows, rows, heads=4, temperature=0.1).item() == pytest.approx(0.0, abs=1e-5)


def test_each_of_query_key_and_value_has_its_own_weight() -> None:
    student = QueryKeyValue(*(random_rows(2, 4, 8, seed=seed) for seed in (1, 2, 3)))
    teacher = QueryKeyValue(*(random_rows(2, 4, 12, seed=seed) for seed in (4, 5, 6)))
    recipe = RelationRecipe(form="devit", query_weight=0.2, key_weight=0.0, value_weight=0.3)
    terms = relation_losses(student, teacher, recipe, (4, 6), depth=2)
    assert set(terms) == {"relation query", "relation value"}
    expected = 0.3 * devit_relation(student.value, teacher.value, (4, 6), depth=2)
    torch.testing.assert_close(terms["relation value"], expected)


def test_the_token_loss_is_the_mean_squared_distance() -> None:
    found = token_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]]))
    assert found.item() == pytest.approx((1 + 4 + 0 + 4) / 4)


def test_the_total_is_the_sum_of_all_terms() -> None:
    assert total({"a": torch.tensor(1.5), "b": torch.tensor(2.0)}).item() == 3.5
