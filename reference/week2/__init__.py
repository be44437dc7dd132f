"""Week 2: the same model, fast: caches, packed weights, kernels, many requests at once."""
