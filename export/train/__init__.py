"""Training on a workstation: pretraining, fine-tuning and distilling of every family that export knows.

The loop is transformers' Trainer (and Accelerate's below it); what is ours is what a row of a data set means to a
model (`objectives`), what is kept of a run and how it goes on after a kill (`loop`), and the report.
"""
