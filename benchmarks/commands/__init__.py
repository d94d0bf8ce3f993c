"""The commands of `python -m benchmarks`: parsing and printing only, one module per command."""
