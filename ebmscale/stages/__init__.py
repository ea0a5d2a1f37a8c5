"""How a density ratio is learned in stages, and how its priors are sampled: for training, given latents and samples."""
