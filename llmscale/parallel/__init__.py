"""How a model is laid out over ranks: the grid, the tables, the initial values."""
