"""What one training step computes: the tuned model, its loss and gradients."""
