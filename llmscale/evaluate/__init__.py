"""How good a model is: held-out loss, and the figures to compare it with."""
