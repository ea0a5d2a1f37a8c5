"""How a ratio is learned, and how samples of p_k are drawn."""
