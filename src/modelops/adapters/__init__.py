"""What ModelOps reaches the outside world through: bundles, artifacts, execution environments."""
