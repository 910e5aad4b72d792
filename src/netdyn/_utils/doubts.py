"""Questions to a network's values that are answered as last time, and checked when there is time to read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from netdyn._utils.transit import together

Answers = Mapping[Hashable, Any]


@dataclass(frozen=True)
class Question:
    """What the answer depends on, and how it is found.

    Attributes:
        key: Its name.
        evidence: Small tensors on any device.
        answers: All answers that are possible, the likeliest first.
        judge: Finds the answer from the numbers in the evidence, a list for each tensor.
    """

    key: Hashable
    evidence: Sequence[Tensor]
    answers: Sequence[Any]
    judge: Callable[[list[list[float]]], Any]


class Doubts:
    """Answers questions from their evidence, or, so that nobody has to wait for a device, before it is looked at.

    Then each is answered as it was last time, or with its likeliest answer, and :meth:`justified` tells afterwards
    whether that was right. Where it was not, whatever was built on the answers has to be made anew.

    Args:
        assumed: The answers of last time, which may lack some; None: look at the evidence at once.

    Example:
        >>> import torch
        >>> question = Question("is it positive", [torch.tensor(-1.0)], (True, False), lambda found: found[0][0] > 0)
        >>> Doubts(None).ask([question]), Doubts({}).ask([question])
        ([False], [True])
        >>> doubts = Doubts({"is it positive": False})
        >>> doubts.ask([question]), doubts.justified()
        ([False], True)
    """

    def __init__(self, assumed: Answers | None) -> None:
        self.assumed = assumed
        #: All answers given, which the next evaluation may assume.
        self.answers: dict[Hashable, Any] = {}
        self._open: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        """The answers, in order."""
        if self.assumed is None:
            given = _judged(questions)
        else:
            self._open += questions
            given = [_likeliest(question, self.assumed) for question in questions]
        self.answers |= {question.key: answer for question, answer in zip(questions, given, strict=True)}
        return given

    def justified(self) -> bool:
        """Whether what was assumed is what the evidence says; reads it."""
        return _judged(self._open) == [self.answers[question.key] for question in self._open]


def _likeliest(question: Question, assumed: Answers) -> Any:
    """Last time's answer, if it is still possible."""
    likeliest = question.answers[0]
    answer = assumed.get(question.key, likeliest)
    return answer if answer in question.answers else likeliest


def _judged(questions: Sequence[Question]) -> list[Any]:
    """The answers that the evidence gives, all of it read at once."""
    found = iter(together([tensor for question in questions for tensor in question.evidence]))
    return [question.judge([next(found) for _ in question.evidence]) for question in questions]
