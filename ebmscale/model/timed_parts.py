"""The parts of an update that are timed. This file does not import torch, since processes that only watch read it."""

PARTS = ("data", "posterior", "generator", "prior", "ratio", "evidence", "checkpoint")
