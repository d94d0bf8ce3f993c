"""One module per command of `python -m engines`: parsing and printing only; heavy imports sit inside `run`."""
