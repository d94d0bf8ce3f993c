"""`python -m benchmarks html` and `publish`: saved results as pages of one file each."""
