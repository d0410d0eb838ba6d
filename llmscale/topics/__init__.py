"""Topics of texts: clusters of their vectors, and the words that tell them apart."""
