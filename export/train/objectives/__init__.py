"""One file a kind of objective: what rows of a data set mean to a model, and what its answers are worth."""
