"""The mathematics of multi-stage density ratio estimation: pure functions and values on tensors."""
