"""Generation: what turns logits into text."""
