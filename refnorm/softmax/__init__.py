"""Room softmax."""
