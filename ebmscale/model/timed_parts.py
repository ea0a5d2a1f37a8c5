"""The parts of an update whose time is told apart; without torch, as processes that only watch need them too."""

PARTS = ("data", "posterior", "generator", "prior", "ratio", "evidence", "checkpoint")
