"""What training minimises."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Measure how far the student's softened answer is from the teacher's.

    Kullback-Leibler divergence of the softmax of both logits ``(B, K)`` divided by ``temperature``, averaged over
    the batch and multiplied by ``temperature`` squared, so that its gradient keeps its size (Hinton et al., 2015).
    """
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
