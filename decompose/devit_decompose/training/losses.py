"""What training minimises; every term is a scalar tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from devit_decompose.models.model import QueryKeyValue
from devit_decompose.recipe.training import AnswerRecipe, RelationRecipe


def label_loss(logits: Tensor, labels: Tensor, smoothing: float, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits ``(B, K)`` to labels ``(B,)``, or to mixed ones ``(B, K)``; weights are ``(K,)``."""
    return functional.cross_entropy(logits.float(), labels, weight=class_weights, label_smoothing=smoothing)


def answer_losses(
    answers: tuple[Tensor, ...],
    teacher_logits: Tensor | None,
    labels: Tensor,
    recipe: AnswerRecipe,
    smoothing: float,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compare a student's answer with the labels and with the teacher's answer, each with its weight.

    Of the logits ``(B, K)`` of each head, the first are compared with the labels, the last with the teacher's: a DeiT's
    distillation head, or the same head if there is only one. The teacher's are absent where their weight is 0.
    """
    terms = {}
    if recipe.label_weight:
        terms["labels"] = recipe.label_weight * label_loss(answers[0], labels, smoothing, class_weights)
    if recipe.teacher_weight:
        if teacher_logits is None:
            raise ValueError("a weight for the teacher's answer needs that answer")
        to_teacher = (
            soft_distillation(answers[-1].float(), teacher_logits, recipe.temperature)
            if recipe.target == "soft"
            else hard_distillation(answers[-1].float(), teacher_logits)
        )
        terms["teacher"] = recipe.teacher_weight * to_teacher
    return terms


def soft_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Measure how far the student's softened answer is from the teacher's.

    Kullback-Leibler divergence of the softmax of both logits ``(B, K)`` divided by ``temperature``, averaged over
    the batch and multiplied by ``temperature`` squared, so that its gradient keeps its size (Hinton et al., 2015).
    """
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hard_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of logits ``(B, K)`` to the teacher's first choice (DeiT, arXiv 2012.12877)."""
    return functional.cross_entropy(logits, teacher_logits.argmax(dim=-1))


def relation_losses(
    student: QueryKeyValue, teacher: QueryKeyValue, recipe: RelationRecipe, head_widths: tuple[int, int], depth: int
) -> dict[str, Tensor]:
    """Compare the student's token-to-token relations of query, key and value with the teacher's.

    Each is ``(B, T, d)``; d may differ. For form ``devit`` count the numbers per head in student and teacher, and the
    student's blocks.
    """
    weights = (recipe.query_weight, recipe.key_weight, recipe.value_weight)
    terms = {}
    for name, weight, ours, theirs in zip(QueryKeyValue._fields, weights, student, teacher, strict=True):
        if not weight:
            continue
        distance = (
            devit_relation(ours.float(), theirs.float(), head_widths, depth)
            if recipe.form == "devit"
            else heads_relation(ours.float(), theirs.float(), recipe.heads, recipe.temperature)
        )
        terms[f"relation {name}"] = weight * distance
    return terms


def devit_relation(student: Tensor, teacher: Tensor, head_widths: tuple[int, int], depth: int) -> Tensor:
    """Compare relations as the authors' code does.

    Each side is ``softmax(X X^T / sqrt(head width))`` over all heads side by side, X ``(B, T, d)``; the divergence
    of the student's from the teacher's is summed over all T x T pairs, averaged over the batch and divided by the
    student's depth (github: falcon-xu/DeViT; read, not copied).
    """
    ours, theirs = (
        functional.log_softmax(rows @ rows.transpose(1, 2) / width**0.5, dim=-1)  # (B, T, T)
        for rows, width in zip((student, teacher), head_widths, strict=True)
    )
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) / depth


def heads_relation(student: Tensor, teacher: Tensor, heads: int, temperature: float) -> Tensor:
    """Compare relations head by head, at one temperature for all widths.

    X ``(B, T, d)`` is cut into A equal parts as in MiniLMv2 (arXiv 2012.15828); rows are scaled to length 1, so that
    ``X X^T`` holds cosines on both sides. The divergence is averaged over batch, parts and rows.
    """
    ours, theirs = (
        functional.log_softmax(rows @ rows.transpose(2, 3) / temperature, dim=-1)  # (B, A, T, T)
        for rows in (functional.normalize(_cut(side, heads), dim=-1) for side in (student, teacher))
    )
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1).mean()


def token_loss(mapped: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared distance between mapped features and the teacher's, both ``(B, D)``."""
    return functional.mse_loss(mapped.float(), teacher_features.float())


def total(terms: dict[str, Tensor]) -> Tensor:
    """Add all terms up."""
    return torch.stack(list(terms.values())).sum()


def _cut(rows: Tensor, parts: int) -> Tensor:
    batch, tokens, width = rows.shape
    return rows.reshape(batch, tokens, parts, width // parts).transpose(1, 2)  # (B, T, d) -> (B, A, T, d / A)
