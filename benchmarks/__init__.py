"""What a bundle costs in milliseconds and loses in millimetres on this machine (`python -m benchmarks`)."""
