"""Week 4: train the model that the first three weeks run."""
