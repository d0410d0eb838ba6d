"""The trainer: one loop for every model family, objective and layout."""
