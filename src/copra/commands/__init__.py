"""One module per command of the command line: its arguments, and calls of the other packages."""
