"""One module per command of `python -m training`: parsing and printing only; heavy imports sit inside `run`."""
