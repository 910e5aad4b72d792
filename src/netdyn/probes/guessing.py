"""Whether a network does better on a probe than guessing."""

from __future__ import annotations

import math

#: An accuracy counts as guessed up to this many standard errors above what guessing gives.
ERRORS = 3.0
#: From this many classes on an accuracy also counts as guessed up to twice 1/K: the answers of a network that has
#: learnt nothing are not random, and may suit the classes better than guessing does. With fewer classes twice 1/K is
#: more than half of all answers.
MANY_CLASSES = 5


def guessing(class_sizes: list[int]) -> float:
    """The accuracy of the best guess: always the largest class, or any of K. 0 without classes."""
    return max(1 / len(class_sizes), max(class_sizes) / sum(class_sizes)) if len(class_sizes) > 1 else 0.0


def is_guessed(accuracy: float, guess: float, num_classes: int, samples: int) -> bool:
    """Whether guessing could explain an accuracy.

    It could up to p₀ + 3·√(p₀(1 − p₀)/S), p₀ the accuracy ``guess`` of guessing, and with five classes or more up to
    2/K. False if the accuracy is NaN, or without classes.

    Source:
        netdyn's convention.

    Examples:
        >>> is_guessed(0.17, guess=0.1, num_classes=10, samples=1000)
        True
        >>> is_guessed(0.17, guess=0.01, num_classes=100, samples=1000)
        False
    """
    if num_classes < 2:
        return False
    limit = guess + ERRORS * math.sqrt(guess * (1 - guess) / samples)
    if num_classes >= MANY_CLASSES:
        limit = max(limit, 2 / num_classes)
    return accuracy <= limit
