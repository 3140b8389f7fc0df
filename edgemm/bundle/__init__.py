"""The bundle: the only thing that the two halves of edgemm share."""
