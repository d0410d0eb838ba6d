"""Where documents come from: files and hub data sets, cut into spans, and read from any position."""
