"""What a verdict is: a sentence about some numbers; and the numbers of the prior that verdicts are about."""

from typing import Literal, NamedTuple

Grade = Literal["good", "bad", "unclear"]


class Verdict(NamedTuple):
    """What some numbers mean.

    Attributes:
        topic: what it is about, in two or three words.
        grade: whether that is good, bad, or cannot be said.
        text: the sentence.
        advice: what to change; empty if nothing.
    """

    topic: str
    grade: Grade
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}{f' {self.advice}' if self.advice else ''}"


class Fit(NamedTuple):
    """How p_k fits: the mean log density of posterior latents of held-out images minus that of samples of p_k.

    Attributes:
        stage: k.
        gap: in nats.
        error: its standard error.
    """

    stage: int
    gap: float
    error: float


class Stage(NamedTuple):
    """A stage of the prior: its number, and its KL bound with standard error in nats."""

    number: int
    bound: float
    error: float
