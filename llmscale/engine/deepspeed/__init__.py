"""What is done to DeepSpeed from outside, by names that it does not promise to keep."""
